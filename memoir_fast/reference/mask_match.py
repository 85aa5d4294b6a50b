"""The specification of `mask_match` in plain torch."""

import torch

from memoir_fast.reference.mask_overlap import mask_overlap


def mask_match(
    query: torch.Tensor, store: torch.Tensor, count: torch.Tensor, min_overlap: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `memoir_fast.ops.mask_match`."""
    capacity = len(store)
    if capacity == 0:
        return query.new_full((len(query),), -1), query.new_zeros(len(query))
    row = torch.arange(capacity, device=store.device)
    overlap = mask_overlap(query, store).where(row < count, -1)
    best = (overlap.long() * capacity + (capacity - 1 - row)).max(dim=1).values  # most bits, then the lowest row
    overlap = best.div(capacity, rounding_mode="floor").int()
    edit = torch.where(overlap >= min_overlap, capacity - 1 - best % capacity, -1).int()
    return edit, overlap.clamp(min=0)
