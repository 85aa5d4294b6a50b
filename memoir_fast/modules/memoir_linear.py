"""`MemoirLinear`: a linear layer with a residual memory."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from memoir_fast.modules.mask_store import MaskStore
from memoir_fast.modules.residual_memory import ResidualMemory
from memoir_fast.modules.tophash import TopHash
from memoir_fast.ops._checks import readable


def linear_shape(layer: Any) -> tuple[int, int]:
    """(inputs, outputs) of a linear layer: `nn.Linear` and its kin, or transformers' `Conv1D`."""
    if hasattr(layer, "in_features"):
        return layer.in_features, layer.out_features
    if hasattr(layer, "nf"):
        return layer.weight.shape[0], layer.nf
    raise TypeError(f"the edited layer must be a linear layer (nn.Linear or Conv1D), got {type(layer).__name__}")


def min_overlap(tau: float, k: int) -> int:
    """The smallest overlap in bits with overlap / k >= tau."""
    if not 0 < tau <= 1:
        raise ValueError(f"tau must lie in (0, 1], got {tau}")
    return max(1, math.ceil(round(tau * k, 6)))


class MemoirLinear(nn.Module):
    """Drop-in for a linear layer: its output, plus what the residual memory knows of the matched edit.

    Each sequence is routed on its own. Where no stored mask overlaps enough, the output is the base layer's, bit for
    bit. Used alone, every call decides anew, on all tokens of each sequence; in a language model, `router` decides
    (see `memoir_fast.routing`).

    Args:
        base (nn.Module): `nn.Linear`, anything with in_features and out_features, or transformers' `Conv1D`.
        k (int): active columns per edit.
        tau (float): an overlap ratio of at least tau is a match; in (0, 1]. Default: 0.5.
        seed (int): seed of the permutation. Default: 0.
        max_edits (int, optional): see `MaskStore`.

    Example:
        >>> import torch
        >>> from memoir_fast.modules import MemoirLinear
        >>> layer = MemoirLinear(torch.nn.Linear(64, 4), k=8, tau=0.9)
        >>> x = torch.randn(1, 5, 64)
        >>> mask, columns = layer.tophash(x)
        >>> edit = layer.store.append(mask[0], columns[0])
        >>> with torch.no_grad():
        ...     layer.memory.update(columns[0], torch.ones(1, 8), torch.ones(1, 4))
        ...     torch.equal(layer(x), layer.base(x)), torch.equal(layer(-x.flip(-1)), layer.base(-x.flip(-1)))
        (False, True)
    """

    base: Any

    def __init__(self, base: Any, k: int, tau: float = 0.5, seed: int = 0, max_edits: int | None = None) -> None:
        super().__init__()
        width, outputs = linear_shape(base)
        weight: torch.Tensor = base.weight
        dtype = weight.dtype if weight.dtype.is_floating_point else torch.get_default_dtype()
        self.base = base
        self.tophash = TopHash(width, k, seed, weight.device)
        self.store = MaskStore(width, k, max_edits, weight.device)
        self.memory = ResidualMemory(width, outputs, dtype, weight.device)
        self.tau = tau
        self.router: Callable[[torch.Tensor], torch.Tensor | None] | None = None
        self._draft: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None
        self.register_state_dict_post_hook(_base_keys_as_own)
        self.register_load_state_dict_pre_hook(_own_keys_as_base)
        self.train(base.training)

    @property
    def tau(self) -> float:
        """The threshold on the overlap ratio, in (0, 1]. Setting it sets every edit's; `store` may change one's."""
        return self._tau

    @tau.setter
    def tau(self, value: float) -> None:
        self.min_overlap = min_overlap(value, self.tophash.k)
        self.store.set_min_overlap(self.min_overlap)
        self._tau = value

    @property
    def weight(self) -> torch.Tensor:
        """The base layer's weight."""
        return self.base.weight

    @property
    def bias(self) -> torch.Tensor | None:
        """The base layer's bias."""
        return self.base.bias

    @property
    def in_features(self) -> int:
        """D."""
        return self.tophash.width

    @property
    def out_features(self) -> int:
        """O."""
        return self.memory.weight.shape[1]

    def match(self, x: torch.Tensor, prompt_mask: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Activations [B, S, D], prompt tokens bool [B, S] -> best edit int32 [B] or -1, overlap int32 [B]."""
        mask, _ = self.tophash(x, prompt_mask, check=False)
        return self.store.match(mask)

    @contextmanager
    def drafting(self, output: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Iterator[None]:
        """While an edit is learned: the layer gives `output(x, y)` for its input x and the base layer's output y."""
        self._draft = output
        try:
            yield
        finally:
            self._draft = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [B, S, D] or [B, D] -> the same shape with O outputs; all dimensions but first and last are tokens."""
        y = self.base(x)
        if self._draft is not None:
            return self._draft(x, y)
        if x.dim() < 2:
            raise ValueError(f"x must be [B, S, D] or [B, D], got {list(x.shape)}")
        tokens = x if x.dim() == 3 else x.reshape(x.shape[0], math.prod(x.shape[1:-1]), x.shape[-1])
        route = self.router(tokens) if self.router else self.match(tokens)[0]
        if route is None or len(self.store) == 0 or _follows_nothing(route):
            return y
        mixed = not y.dtype == tokens.dtype == self.memory.weight.dtype  # under autocast, or over a quantised base
        if mixed or torch.is_grad_enabled() and (y.requires_grad or tokens.requires_grad):
            residual = self.memory(tokens.to(self.memory.weight.dtype), self.store.columns, route)
            return y + residual.to(y.dtype).view(y.shape)
        output = y.view(*tokens.shape[:2], y.shape[-1])
        return self.memory.add_(output, tokens, self.store.columns, route).view(y.shape)

    def extra_repr(self) -> str:
        return f"tau={self.tau}"


def _follows_nothing(route: torch.Tensor) -> bool:
    """True where every sequence is known to follow no edit; a device is not asked, which would wait for it."""
    return readable(route) and max(route.tolist(), default=-1) < 0


def _base_keys_as_own(_module: nn.Module, state: dict, prefix: str, _metadata: dict) -> None:
    """The model's state_dict keeps the names that it has without a memory, so that it loads into a plain model."""
    inner = prefix + "base."
    for key in [key for key in state if key.startswith(inner)]:
        state[prefix + key.removeprefix(inner)] = state.pop(key)


def _own_keys_as_base(module: MemoirLinear, state: dict, prefix: str, *_: object) -> None:
    for name in module.base.state_dict():
        if prefix + name in state:
            state[f"{prefix}base.{name}"] = state.pop(prefix + name)
