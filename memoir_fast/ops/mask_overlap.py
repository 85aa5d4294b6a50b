"""`mask_overlap`: how many bits two masks share."""

from collections.abc import Callable
from typing import Any

import torch

from memoir_fast import checks
from memoir_fast.backends import Native
from memoir_fast.ops.registration import register
from memoir_fast.reference.mask_overlap import mask_overlap as mask_overlap_in_torch


def _check(query: torch.Tensor, store: torch.Tensor) -> None:
    checks.tensor("query", query, torch.int32, "B W")
    checks.tensor("store", store, torch.int32, "N W", W=query.shape[1])
    checks.same_device(query=query, store=store)
    if query.shape[1] == 0 or query.shape[1] % 4:
        raise ValueError(f"W must be a positive multiple of 4 words (16 bytes), got {query.shape[1]}")


def _fake(query: torch.Tensor, store: torch.Tensor) -> torch.Tensor:
    return query.new_empty((query.shape[0], store.shape[0]))


def _triton() -> tuple[Callable[..., Any], Callable[..., str | None]]:
    from memoir_fast.kernels import mask_overlap as kernels

    return kernels.mask_overlap, kernels.unsupported


_op = register(
    "mask_overlap",
    "(Tensor query, Tensor store) -> Tensor",
    _check,
    _fake,
    reference=mask_overlap_in_torch,
    triton=_triton,
    cpu=Native(),
    cuda=Native(),
)


def mask_overlap(query: torch.Tensor, store: torch.Tensor) -> torch.Tensor:
    """Bits shared by every query mask and every stored mask: popcount(query AND store).

    Args:
        query (Tensor): packed masks, int32 [B, W].
        store (Tensor): packed masks, int32 [N, W].

    Returns:
        Tensor: overlap, int32 [B, N].

    Raises:
        TypeError, ValueError: on a wrong dtype, shape or device.

    Bytes read: 4 * W * (N + B), the store once for a batch of queries; written: 4 * B * N.

    Example:
        >>> import torch
        >>> from memoir_fast.ops import mask_overlap
        >>> mask_overlap(torch.tensor([[7, 0, 0, -1]]).int(), torch.tensor([[5, 0, 0, 1], [0, 9, 9, 0]]).int())
        tensor([[3, 0]], dtype=torch.int32)
    """
    return _op(query, store)
