"""The specification of `mask_overlap` in plain torch."""

import torch

from memoir_fast.reference.popcount import shared_bits


def mask_overlap(query: torch.Tensor, store: torch.Tensor) -> torch.Tensor:
    """See `memoir_fast.ops.mask_overlap`."""
    return shared_bits(query, store)
