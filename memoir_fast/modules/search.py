"""The search among stored rows of bits, be they masks or routing codes."""

import torch

from memoir_fast import ops


def best_row(
    query: torch.Tensor, rows: torch.Tensor, count: torch.Tensor, min_overlap: torch.Tensor | int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries int32 [B, W] -> best row int32 [B] or -1, overlap int32 [B], of those that reach their own threshold.

    Args:
        query, rows (Tensor): packed bits, int32 [B, W] and int32 [C, W].
        count (Tensor): int32 [], how many rows are in use.
        min_overlap (Tensor or int): thresholds in bits, int32 [C] or one for all.

    Example:
        >>> import torch
        >>> from memoir_fast.modules.search import best_row
        >>> rows = torch.tensor([[3, 0, 0, 0], [7, 0, 0, 0]]).int()
        >>> best_row(torch.tensor([[7, 0, 0, 0]]).int(), rows, torch.tensor(2).int(), 2)
        (tensor([1], dtype=torch.int32), tensor([3], dtype=torch.int32))
    """
    return ops.mask_match(query, rows, count, min_overlap)


def shared_bits(query: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Queries int32 [B, W] and rows int32 [R, W] -> the bits that each pair shares, int32 [B, R]."""
    return ops.mask_overlap(query.to(rows.device).contiguous(), rows)
