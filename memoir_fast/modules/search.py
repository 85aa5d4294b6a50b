"""The search among stored rows of bits, be they masks or routing codes."""

import torch

from memoir_fast import ops

_OUT_OF_REACH = 2**30  # bits; more than a row has


def best_row(
    query: torch.Tensor,
    rows: torch.Tensor,
    count: torch.Tensor,
    min_overlap: torch.Tensor | int,
    among: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries int32 [B, W] -> best row int32 [B] or -1, overlap int32 [B], of those that reach their own threshold.

    Args:
        query, rows (Tensor): packed bits, int32 [B, W] and int32 [C, W].
        count (Tensor): int32 [], how many rows are in use.
        min_overlap (Tensor or int): thresholds in bits, int32 [C] or one for all.
        among (Tensor, optional): bool [C], the rows that are there for these queries, where not all are. Default: all.

    Example:
        >>> import torch
        >>> from memoir_fast.modules.search import best_row
        >>> rows = torch.tensor([[3, 0, 0, 0], [7, 0, 0, 0]]).int()
        >>> best_row(torch.tensor([[7, 0, 0, 0]]).int(), rows, torch.tensor(2).int(), 2)
        (tensor([1], dtype=torch.int32), tensor([3], dtype=torch.int32))
    """
    if among is None:
        return ops.mask_match(query, rows, count, min_overlap)
    least = torch.where(among, min_overlap, _OUT_OF_REACH).int()
    row, overlap = ops.mask_match(query, rows, count, least)
    # without a match, the overlap is that with any row, also of those that are not there for these queries
    found, most = ops.mask_match(query, rows, count, torch.where(among, 1, _OUT_OF_REACH).int())
    return row, torch.where(row >= 0, overlap, torch.where(found >= 0, most, 0))


def shared_bits(query: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Queries int32 [B, W] and rows int32 [R, W] -> the bits that each pair shares, int32 [B, R]."""
    return ops.mask_overlap(query.to(rows.device).contiguous(), rows)
