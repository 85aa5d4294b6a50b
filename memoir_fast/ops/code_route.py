"""`code_route`: which edit a prompt follows, from what the search found for each of its routing codes."""

from collections.abc import Callable
from typing import Any

import torch

from memoir_fast import checks
from memoir_fast.backends import Native
from memoir_fast.ops.registration import register
from memoir_fast.reference.code_route import code_route as code_route_in_torch


def _check(row: torch.Tensor, overlap: torch.Tensor, owner: torch.Tensor, room: torch.Tensor) -> None:
    checks.tensor("row", row, torch.int32, "B Q")
    checks.tensor("overlap", overlap, torch.int32, "B Q", B=row.shape[0], Q=row.shape[1])
    checks.tensor("owner", owner, torch.int32, "C")
    checks.tensor("room", room, torch.int32, "C", C=owner.shape[0])
    checks.same_device(row=row, overlap=overlap, owner=owner, room=room)
    if not row.shape[1]:
        raise ValueError(f"row must be int32 [B, Q] with Q > 0, got {checks.describe(row)}")
    checks.index_range("row", row, -1, owner.shape[0])
    if not owner.shape[0] and row.shape[0]:
        raise ValueError(f"owner must be int32 [C] with C > 0 where there is a prompt, got {checks.describe(owner)}")


def _fake(
    row: torch.Tensor, overlap: torch.Tensor, owner: torch.Tensor, room: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return row.new_empty((row.shape[0],)), row.new_empty((row.shape[0],))


def _triton() -> tuple[Callable[..., Any], Callable[..., str | None]]:
    from memoir_fast.kernels import code_route as kernels

    return kernels.code_route, kernels.unsupported


_op = register(
    "code_route",
    "(Tensor row, Tensor overlap, Tensor owner, Tensor room) -> (Tensor, Tensor)",
    _check,
    _fake,
    reference=code_route_in_torch,
    triton=_triton,
    cpu=Native(),
    cuda=Native(),
)


def code_route(
    row: torch.Tensor, overlap: torch.Tensor, owner: torch.Tensor, room: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The edit that each prompt follows, from the code row that each of its Q routing codes matches.

    What stands behind the search among codes. One code of a prompt decides: of those that match a row, or else of all,
    that of the largest overlap; the first of them on ties.

    Args:
        row (Tensor): int32 [B, Q], the code row that each code matches, or -1.
        overlap (Tensor): int32 [B, Q], the bits that each shares with the row that is nearest to it.
        owner (Tensor): int32 [C], the edit of each code row.
        room (Tensor): int32 [C]; a row with a room of 0 or less leads to no edit.

    Returns:
        (route, overlap): int32 [B], the owner of the row of the code that decides, -1 where it matches none or one that
            leads to no edit; int32 [B], that code's overlap.

    Raises:
        TypeError, ValueError: on a wrong dtype or shape; on a CPU, where a row is not among the C. On a GPU such a row
            is that of no edit.

    Bytes read: 8 * B * (Q + 1); written: 8 * B.

    Example:
        >>> import torch
        >>> from memoir_fast.ops import code_route
        >>> row, overlap = torch.tensor([[2, -1, 0], [-1, -1, 1]]).int(), torch.tensor([[8, 9, 8], [3, 4, 5]]).int()
        >>> code_route(row, overlap, torch.tensor([5, 6, 7]).int(), torch.tensor([9, 0, 9]).int())
        (tensor([ 7, -1], dtype=torch.int32), tensor([8, 5], dtype=torch.int32))
    """
    return _op(row, overlap, owner, room)
