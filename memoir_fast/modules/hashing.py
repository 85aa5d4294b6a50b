"""`TopHash`: from a prompt's activations to its mask."""

from collections.abc import Callable

import torch
from torch import nn

from memoir_fast import ops


class TopHash(nn.Module):
    """Hashes a prompt's activations to a mask of k out of D bits.

    The permutation is drawn once, from `seed`, by a CPU generator of its own, and is part of the state: another
    permutation would silently invalidate every stored mask.

    Args:
        width (int): D, inputs of the edited layer.
        k (int): active columns per mask, 1 <= k <= D.
        seed (int): seed of the permutation. Default: 0.
        device (torch.device, optional): where the buffers lie. Default: the CPU.

    Raises:
        ValueError: k is out of range.

    Example:
        >>> import torch
        >>> from memoir_fast.modules import TopHash
        >>> mask, columns = TopHash(64, k=8)(torch.randn(2, 5, 64))
        >>> mask.shape, columns.shape
        (torch.Size([2, 4]), torch.Size([2, 8]))
    """

    mu: torch.Tensor
    permutation: torch.Tensor
    zero: torch.Tensor
    true: torch.Tensor

    def __init__(self, width: int, k: int, seed: int = 0, device: torch.device | None = None) -> None:
        super().__init__()
        if not 1 <= k <= width:
            raise ValueError(f"k must lie in [1, D = {width}], got {k}")
        self.width, self.k, self.seed = width, k, seed
        order = torch.randperm(width, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("permutation", order.to(device, torch.int32))
        self.register_buffer("mu", torch.zeros(width, device=device))
        # spread out, they are a mean of zeros and a mask of all tokens: to make these anew is a launch for each
        self.register_buffer("zero", torch.zeros(1, device=device), persistent=False)
        self.register_buffer("true", torch.ones((1, 1), dtype=torch.bool, device=device), persistent=False)

    def mean(self, x: torch.Tensor, marked: torch.Tensor, *, check: bool = True) -> torch.Tensor:
        """Activations [B, S, D], marked tokens bool [B, S] -> their mean, float32 [B, D]; NaN where none is marked.

        D may be the part of the inputs that is at hand.
        """
        return ops.prompt_feature(x, marked, self.zero.expand(x.shape[-1]), check=check)

    def feature(self, x: torch.Tensor, prompt_mask: torch.Tensor | None = None, *, check: bool = True) -> torch.Tensor:
        """Activations [B, S, D] and the prompt's tokens, bool [B, S] (all by default) -> feature, float32 [B, D]."""
        if prompt_mask is None:
            prompt_mask = self.true.expand(x.shape[:2])
        return ops.prompt_feature(x, prompt_mask, self.mu, check=check)

    def hash(self, feature: torch.Tensor, *, check: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        """Feature, float32 [B, D] -> mask int32 [B, W], columns int32 [B, k]."""
        return ops.tophash(feature, self.k, self.permutation, check=check)

    def forward(
        self, x: torch.Tensor, prompt_mask: torch.Tensor | None = None, *, check: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Activations [B, S, D] -> mask int32 [B, W], columns int32 [B, k]; see `ops.prompt_feature`, `ops.tophash`."""
        return self.hash(self.feature(x, prompt_mask, check=check), check=check)

    def _apply(self, fn: Callable, recurse: bool = True) -> "TopHash":
        kept = {"mu": self.mu, "zero": self.zero}
        super()._apply(fn, recurse)
        for name, value in kept.items():  # they stay float32 when the model changes dtype
            setattr(self, name, value.to(getattr(self, name).device))
        return self

    def extra_repr(self) -> str:
        return f"width={self.width}, k={self.k}, seed={self.seed}"
