"""How a mask of D bits is packed: bit b of word w is column 32 * w + b; bits past D are 0. It is a file format."""

import torch

BITS = 32
"""Bits of a word."""


def words(width: int) -> int:
    """int32 words of a packed mask of `width` bits: W = 4 * ceil(D / 128), so that a row is a multiple of 16 bytes."""
    return 4 * -(-width // (4 * BITS))


def pack(bits: torch.Tensor) -> torch.Tensor:
    """bool [B, D] -> int32 [B, W]: bit b of word w is column 32 * w + b."""
    batch, width = bits.shape
    padded = torch.zeros((batch, words(width) * BITS), dtype=torch.int64, device=bits.device)
    padded[:, :width] = bits
    weights = 1 << torch.arange(BITS, device=bits.device)
    packed = (padded.view(batch, words(width), BITS) * weights).sum(-1)  # 0 .. 2^32 - 1
    return torch.where(packed >= 1 << 31, packed - (1 << 32), packed).int()


def unpack(mask: torch.Tensor, width: int) -> torch.Tensor:
    """int32 [B, W] -> bool [B, D], the inverse of `pack`."""
    bits = mask[..., None] >> torch.arange(BITS, dtype=torch.int32, device=mask.device) & 1
    return bits.flatten(-2)[..., :width].bool()
