"""The search among stored rows of bits, be they masks or routing codes."""

import torch

from memoir_fast import ops
from memoir_fast.checks import readable

_OUT_OF_REACH = 2**30  # bits; more than a row has
_FEW = 0.5  # share of the rows up to which a copy of them is searched, where that is no slower


def best_row(
    query: torch.Tensor,
    rows: torch.Tensor,
    count: torch.Tensor,
    min_overlap: torch.Tensor | int,
    among: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries int32 [B, W] -> best row int32 [B] or -1, overlap int32 [B], of those that reach their own threshold.

    Where none does, the overlap is the largest with any row that is there; 0 with none.

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
    if readable(among):  # no device is waited for
        own = among[: int(count)].nonzero().flatten()
        if len(own) <= _FEW * len(among):
            return _best_of(query, rows, min_overlap, own)
    least = torch.where(among, min_overlap, _OUT_OF_REACH).int()
    row, overlap = ops.mask_match(query, rows, count, least)
    # without a match, the overlap is that with any row, also of those that are not there for these queries
    found, most = ops.mask_match(query, rows, count, torch.where(among, 1, _OUT_OF_REACH).int())
    return row, torch.where(row >= 0, overlap, torch.where(found >= 0, most, 0))


def _best_of(
    query: torch.Tensor, rows: torch.Tensor, min_overlap: torch.Tensor | int, own: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `best_row`, among the rows numbered int64 [R], ascending, by searching a copy of them."""
    if not len(own):
        return query.new_full((len(query),), -1), query.new_zeros(len(query))
    least = min_overlap if isinstance(min_overlap, int) else min_overlap[own]
    place, overlap = ops.mask_match(query, rows[own], torch.tensor(len(own), dtype=torch.int32), least)
    return torch.where(place >= 0, own[place.clamp(min=0).long()], -1).int(), overlap


def shared_bits(query: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Queries int32 [B, W] and rows int32 [R, W] -> the bits that each pair shares, int32 [B, R]."""
    return ops.mask_overlap(query.to(rows.device).contiguous(), rows)
