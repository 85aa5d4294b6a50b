"""`mask_match`: the stored edit whose mask overlaps a query's most, if it overlaps enough."""

import torch

from memoir_fast.ops import _checks
from memoir_fast.ops._library import register


def _check(query: torch.Tensor, store: torch.Tensor, count: torch.Tensor, min_overlap: int) -> None:
    _checks.tensor("query", query, torch.int32, "B W")
    _checks.tensor("store", store, torch.int32, "C W", W=query.shape[1])
    _checks.tensor("count", count, torch.int32, "")
    _checks.same_device(query=query, store=store, count=count)
    if query.shape[1] == 0 or query.shape[1] % 4:
        raise ValueError(f"W must be a positive multiple of 4 words (16 bytes), got {query.shape[1]}")
    if min_overlap < 1:
        raise ValueError(f"min_overlap must be at least 1, got {min_overlap}")
    _checks.index_range("count", count, 0, store.shape[0] + 1)


def _fake(
    query: torch.Tensor, store: torch.Tensor, count: torch.Tensor, min_overlap: int
) -> tuple[torch.Tensor, torch.Tensor]:
    return query.new_empty(query.shape[0]), query.new_empty(query.shape[0])


_op = register(
    "mask_match", "(Tensor query, Tensor store, Tensor count, int min_overlap) -> (Tensor, Tensor)", _check, _fake
)


def mask_match(
    query: torch.Tensor, store: torch.Tensor, count: torch.Tensor, min_overlap: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Routes each query to the stored mask that it shares most bits with; the lowest id wins a tie.

    Scan and arg-max are one pass; nothing of size [B, C] is written. A row of zeros (a deleted edit) never matches.

    Args:
        query (Tensor): packed masks, int32 [B, W].
        store (Tensor): packed masks, int32 [C, W], of which the first `count` rows are looked at.
        count (Tensor): int32 [], on the store's device, 0 <= count <= C. A kernel clamps a value outside; on the CPU
            it raises.
        min_overlap (int): threshold in bits, >= 1; tau * k rounded up.

    Returns:
        edit (Tensor): int32 [B], the row of the best match, or -1 where it shares fewer than `min_overlap` bits.
        overlap (Tensor): int32 [B], bits shared with the best row, matched or not; 0 where count is 0.

    Raises:
        TypeError, ValueError: on a wrong dtype, shape, device or threshold.

    Bytes read: 4 * W * (count + B); written: 8 * B. Source: MEMOIR (arXiv 2506.07899), section 3.3.

    Example:
        >>> import torch
        >>> from memoir_fast.ops import mask_match
        >>> store = torch.tensor([[1, 0, 0, 0], [7, 0, 0, 0], [7, 0, 0, 0]]).int()
        >>> mask_match(torch.tensor([[6, 0, 0, 0], [8, 0, 0, 0]]).int(), store, torch.tensor(3).int(), 2)
        (tensor([ 1, -1], dtype=torch.int32), tensor([2, 0], dtype=torch.int32))
    """
    edit, overlap = _op(query, store, count, min_overlap)
    return edit, overlap
