"""The specification of `mask_match` in plain torch."""

import torch

from memoir_fast.reference.popcount import shared_bits


def mask_match(
    query: torch.Tensor, store: torch.Tensor, count: torch.Tensor, min_overlap: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `memoir_fast.ops.mask_match`."""
    if len(store) == 0:
        return query.new_full((len(query),), -1), query.new_zeros(len(query))
    row = torch.arange(len(store), device=store.device)
    overlap = shared_bits(query, store)
    reached = overlap >= min_overlap.clamp(min=1)
    # Rows that reach their threshold, then most bits, then the lowest row.
    key = reached.long() << 62 | overlap.long() << 31 | (1 << 31) - 1 - row
    best = torch.where(row < count, key, -1).max(dim=1).values
    edit = torch.where(best >= 1 << 62, (1 << 31) - 1 - best % (1 << 31), -1).int()
    return edit, torch.where(best < 0, 0, (best >> 31) % (1 << 31)).int()
