"""The specification of `mask_overlap` in plain torch."""

import torch


def popcount(words: torch.Tensor) -> torch.Tensor:
    """Set bits of each int32 word, by adding neighbouring fields of 1, 2 and 4 bits, then the bytes."""
    words = words - (words >> 1 & 0x55555555)
    words = (words & 0x33333333) + (words >> 2 & 0x33333333)
    words = words + (words >> 4) & 0x0F0F0F0F
    return words * 0x01010101 >> 24


def mask_overlap(query: torch.Tensor, store: torch.Tensor) -> torch.Tensor:
    """See `memoir_fast.ops.mask_overlap`."""
    overlap = torch.empty((len(query), len(store)), dtype=torch.int32, device=query.device)
    for row, mask in enumerate(query):
        overlap[row] = popcount(store & mask).sum(-1)
    return overlap
