"""`mask_columns`: a packed mask's bits as column numbers."""

from collections.abc import Callable
from typing import Any

import torch

from memoir_fast import checks
from memoir_fast.backends import Native
from memoir_fast.ops.registration import register
from memoir_fast.reference.mask_columns import mask_columns as mask_columns_in_torch


def _check(mask: torch.Tensor, k: int) -> None:
    checks.tensor("mask", mask, torch.int32, "B W")
    bits = 32 * mask.shape[1]
    if not 1 <= k <= bits:
        raise ValueError(f"k must lie in [1, 32 W = {bits}], got {k}")


def _fake(mask: torch.Tensor, k: int) -> torch.Tensor:
    return mask.new_empty((mask.shape[0], k))


def _triton() -> tuple[Callable[..., Any], Callable[..., str | None]]:
    from memoir_fast.kernels import mask_columns as kernels

    return kernels.mask_columns, kernels.unsupported


_op = register(
    "mask_columns",
    "(Tensor mask, int k) -> Tensor",
    _check,
    _fake,
    reference=mask_columns_in_torch,
    triton=_triton,
    cpu=Native(),
    cuda=Native(),
)


def mask_columns(mask: torch.Tensor, k: int) -> torch.Tensor:
    """The numbers of the set bits of each mask: the columns of a hashed prompt, from its mask alone.

    An edit's columns take ten times the room of its mask, so that it is enough to store masks, and to unpack those of
    the routes just decided.

    Args:
        mask (Tensor): packed masks, int32 [B, W]; bit b of word w is column 32 * w + b.
        k (int): columns per mask, 1 <= k <= 32 W.

    Returns:
        Tensor: int32 [B, k], ascending. A mask of fewer bits, as of a deleted edit, is filled up with -1; of one with
            more, the k lowest are listed.

    Raises:
        TypeError, ValueError: on a wrong dtype, shape or k.

    Bytes read: 4 * B * W; written: 4 * B * k.

    Example:
        >>> import torch
        >>> from memoir_fast.ops import mask_columns
        >>> mask_columns(torch.tensor([[5, 0, 1, 0], [0, 0, 0, 0]]).int(), 3).tolist()
        [[0, 2, 64], [-1, -1, -1]]
    """
    return _op(mask, k)
