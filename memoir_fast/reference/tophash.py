"""The specification of `tophash` in plain torch, and how a mask is packed."""

import torch

from memoir_fast.ops._checks import words

_BITS = 32


def pack(bits: torch.Tensor) -> torch.Tensor:
    """bool [B, D] -> int32 [B, W]: bit b of word w is column 32 * w + b."""
    batch, width = bits.shape
    padded = torch.zeros((batch, words(width) * _BITS), dtype=torch.int64, device=bits.device)
    padded[:, :width] = bits
    weights = 1 << torch.arange(_BITS, device=bits.device)
    packed = (padded.view(batch, words(width), _BITS) * weights).sum(-1)  # 0 .. 2^32 - 1
    return torch.where(packed >= 1 << 31, packed - (1 << 32), packed).int()


def unpack(mask: torch.Tensor, width: int) -> torch.Tensor:
    """int32 [B, W] -> bool [B, D], the inverse of `pack`."""
    bits = mask[..., None] >> torch.arange(_BITS, dtype=torch.int32, device=mask.device) & 1
    return bits.flatten(-2)[..., :width].bool()


def tophash(feature: torch.Tensor, k: int, permutation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """See `memoir_fast.ops.tophash`."""
    finite = feature.isfinite().all(dim=1, keepdim=True)
    order = torch.sort(feature.abs(), dim=1, descending=True, stable=True).indices  # a tie keeps the lower index first
    columns = permutation[order[:, :k]].sort(dim=1).values
    bits = torch.zeros(feature.shape, dtype=torch.bool, device=feature.device)
    bits.scatter_(1, columns.long(), finite.expand(-1, k))
    return pack(bits), torch.where(finite, columns, -1).contiguous()
