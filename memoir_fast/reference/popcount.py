"""Bits that masks share, in plain torch."""

import torch


def popcount(words: torch.Tensor) -> torch.Tensor:
    """Set bits of each int32 word, by adding neighbouring fields of 1, 2 and 4 bits, then the bytes."""
    words = words - (words >> 1 & 0x55555555)
    words = (words & 0x33333333) + (words >> 2 & 0x33333333)
    words = words + (words >> 4) & 0x0F0F0F0F
    return words * 0x01010101 >> 24


def shared_bits(query: torch.Tensor, store: torch.Tensor) -> torch.Tensor:
    """Masks int32 [B, W] and int32 [N, W] -> int32 [B, N], one query at a time."""
    shared = torch.empty((len(query), len(store)), dtype=torch.int32, device=query.device)
    for row, mask in enumerate(query):
        shared[row] = popcount(store & mask).sum(-1)
    return shared
