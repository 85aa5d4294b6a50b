"""`mask_match`: the stored edit whose mask overlaps a query's most, among those that it overlaps enough."""

import torch

from memoir_fast.ops import _checks
from memoir_fast.ops._library import register

_MOST_BITS = 2**31 - 1


def _check(query: torch.Tensor, store: torch.Tensor, count: torch.Tensor, min_overlap: torch.Tensor) -> None:
    _checks.tensor("query", query, torch.int32, "B W")
    _checks.tensor("store", store, torch.int32, "C W", W=query.shape[1])
    _checks.tensor("count", count, torch.int32, "")
    _checks.tensor("min_overlap", min_overlap, torch.int32, "C", C=store.shape[0])
    _checks.same_device(query=query, store=store, count=count, min_overlap=min_overlap)
    if query.shape[1] == 0 or query.shape[1] % 4:
        raise ValueError(f"W must be a positive multiple of 4 words (16 bytes), got {query.shape[1]}")
    _checks.index_range("count", count, 0, store.shape[0] + 1)


def _fake(
    query: torch.Tensor, store: torch.Tensor, count: torch.Tensor, min_overlap: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return query.new_empty(query.shape[0]), query.new_empty(query.shape[0])


_op = register(
    "mask_match", "(Tensor query, Tensor store, Tensor count, Tensor min_overlap) -> (Tensor, Tensor)", _check, _fake
)


def mask_match(
    query: torch.Tensor, store: torch.Tensor, count: torch.Tensor, min_overlap: torch.Tensor | int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Routes each query to the stored mask that it shares most bits with, of those that reach their own threshold.

    The lowest row wins a tie. Scan and arg-max are one pass; nothing of size [B, C] is written. A row of zeros (a
    deleted edit) never matches.

    Args:
        query (Tensor): packed masks, int32 [B, W].
        store (Tensor): packed masks, int32 [C, W], of which the first `count` rows are looked at.
        count (Tensor): int32 [], on the store's device, 0 <= count <= C. A kernel clamps a value outside; on the CPU
            it raises.
        min_overlap (Tensor or int): int32 [C], each row's threshold in bits, tau * k rounded up; a value below 1 counts
            as 1. One int >= 1 stands for all rows, at the price of making a tensor of it: give the tensor where
            microseconds count.

    Returns:
        edit (Tensor): int32 [B], the matched row: of those that share at least their own threshold, the one that shares
            most; -1 where there is none.
        overlap (Tensor): int32 [B], bits shared with the matched row; without a match, with the row that shares most;
            0 where count is 0.

    Raises:
        TypeError, ValueError: on a wrong dtype, shape or device, or an int below 1.

    Bytes read: 4 * W * (count + B) + 4 * count; written: 8 * B. Source: MEMOIR (arXiv 2506.07899), section 3.3.

    Example:
        >>> import torch
        >>> from memoir_fast.ops import mask_match
        >>> store = torch.tensor([[1, 0, 0, 0], [7, 0, 0, 0], [7, 0, 0, 0]]).int()
        >>> mask_match(torch.tensor([[6, 0, 0, 0], [8, 0, 0, 0]]).int(), store, torch.tensor(3).int(), 2)
        (tensor([ 1, -1], dtype=torch.int32), tensor([2, 0], dtype=torch.int32))
        >>> mask_match(torch.tensor([[6, 0, 0, 0]]).int(), store, torch.tensor(3).int(), torch.tensor([1, 3, 2]).int())
        (tensor([2], dtype=torch.int32), tensor([2], dtype=torch.int32))
    """
    if isinstance(min_overlap, int):
        if min_overlap < 1:
            raise ValueError(f"min_overlap must be at least 1, got {min_overlap}")
        min_overlap = query.new_full((1,), min(min_overlap, _MOST_BITS), dtype=torch.int32).expand(store.shape[0])
    edit, overlap = _op(query, store, count, min_overlap)
    return edit, overlap
