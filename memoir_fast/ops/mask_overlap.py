"""`mask_overlap`: how many bits two masks share."""

import torch

from memoir_fast.ops import _checks
from memoir_fast.ops._library import register


def _check(query: torch.Tensor, store: torch.Tensor) -> None:
    _checks.tensor("query", query, torch.int32, "B W")
    _checks.tensor("store", store, torch.int32, "N W", W=query.shape[1])
    _checks.same_device(query=query, store=store)
    if query.shape[1] == 0 or query.shape[1] % 4:
        raise ValueError(f"W must be a positive multiple of 4 words (16 bytes), got {query.shape[1]}")


def _fake(query: torch.Tensor, store: torch.Tensor) -> torch.Tensor:
    return query.new_empty((query.shape[0], store.shape[0]))


_op = register("mask_overlap", "(Tensor query, Tensor store) -> Tensor", _check, _fake)


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
