"""The specification of `tophash` in plain torch."""

import torch

from memoir_fast.mask_format import pack


def tophash(feature: torch.Tensor, k: int, permutation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """See `memoir_fast.ops.tophash`."""
    finite = feature.isfinite().all(dim=1, keepdim=True)
    order = torch.sort(feature.abs(), dim=1, descending=True, stable=True).indices  # a tie keeps the lower index first
    columns = permutation[order[:, :k]].sort(dim=1).values
    bits = torch.zeros(feature.shape, dtype=torch.bool, device=feature.device)
    bits.scatter_(1, columns.long(), finite.expand(-1, k))
    return pack(bits), torch.where(finite, columns, -1).contiguous()
