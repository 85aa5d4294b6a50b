"""`MemoirLinear`: a linear layer with a residual memory."""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from memoir_fast.distributed.row_parallel import Part
from memoir_fast.errors import MemoirError
from memoir_fast.modules import banks, compiled, model_state, tickets
from memoir_fast.modules.adding import added
from memoir_fast.modules.autocast import without_autocast
from memoir_fast.modules.base_layer import AroundBase, device_beside, dtype_beside, offloaded
from memoir_fast.modules.code_store import CodeStore
from memoir_fast.modules.hashing import TopHash
from memoir_fast.modules.mask_store import MaskStore
from memoir_fast.modules.part_memory import PartMemory
from memoir_fast.modules.replaceable import Replaceable
from memoir_fast.modules.residual_memory import ResidualMemory
from memoir_fast.modules.routed import Routed, follows_nothing
from memoir_fast.modules.routing_code import RoutingCode
from memoir_fast.modules.spawned import hold
from memoir_fast.modules.turns import Turns
from memoir_fast.modules.views import View, Views


def linear_shape(layer: Any) -> tuple[int, int]:
    """(inputs, outputs) of a linear layer: `nn.Linear` and its kin, or transformers' `Conv1D`; TypeError of another."""
    if hasattr(layer, "in_features"):
        return layer.in_features, layer.out_features
    if hasattr(layer, "nf"):
        return layer.weight.shape[0], layer.nf
    raise TypeError(f"the edited layer must be a linear layer (nn.Linear or Conv1D), got {type(layer).__name__}")


def min_overlap(tau: float, k: int) -> int:
    """The smallest overlap in bits with overlap / k >= tau. ValueError where tau is not in (0, 1]."""
    if not 0 < tau <= 1:
        raise ValueError(f"tau must lie in (0, 1], got {tau}")
    return max(1, math.ceil(round(tau * k, 6)))


class MemoirLinear(AroundBase, Replaceable, tickets.Enrolled, nn.Module):
    """Drop-in for a linear layer: its output, plus what the residual memory knows of the matched edit.

    Each sequence is routed on its own. Where no stored mask overlaps enough, the output is the base layer's, bit for
    bit. Used alone, every call decides anew, on all tokens of each sequence; in a language model, `router` decides
    (see `memoir_fast.hf.routing`).

    Threads may share it: a forward pass sees the memory as it is before or after what a `changing` block does, also one
    that `torch.compile` has compiled.

    Its state_dict has the base layer's names, and those of the memory beside them. In a language model it has the base
    layer's alone, so that the model's files are those of the plain model: the memory has its own. Copies and pickles
    have a memory of their own, also where torch would share tensors between processes.

    Args:
        base (nn.Module): `nn.Linear`, anything with in_features and out_features, or transformers' `Conv1D`.
        k (int): active columns per edit.
        tau (float): an overlap ratio of at least tau is a match; in (0, 1]. Default: 0.5.
        seed (int): seed of the permutation. Default: 0.
        max_edits (int, optional): see `MaskStore`.
        code (RoutingCode, optional): how routing codes are made, where a language model routes by these. Default: none,
            masks tell whom a prompt belongs to, as published.
        max_pages (int, optional): see `ResidualMemory`.
        part (Part, optional): what this process has of a layer that several share; inputs x are then its own alone.
        beside (int): outputs of W_m that are further layers', behind its own; see `FurtherLinear`. Default: 0.

    Raises:
        TypeError: base is no linear layer, or holds no weight.
        ValueError: k, tau, `max_edits` or `max_pages` is out of range.

    Example:
        >>> import torch
        >>> from memoir_fast.modules import MemoirLinear
        >>> layer = MemoirLinear(torch.nn.Linear(64, 4), k=8, tau=0.9)
        >>> x = torch.randn(1, 5, 64)
        >>> mask, columns = layer.hash(x)
        >>> edit = layer.store.append(mask[0])
        >>> with torch.no_grad():
        ...     layer.memory.update(columns[0], torch.ones(1, 8), torch.ones(1, 4))
        ...     torch.equal(layer(x), layer.base(x)), torch.equal(layer(-x.flip(-1)), layer.base(-x.flip(-1)))
        (False, True)
    """

    own = ("tophash", "store", "memory", "code", "codes")
    """What it has besides its base layer."""
    content = ("store", "memory", "codes", "_tau")
    """What is another, where it holds other edits."""

    def __init__(
        self,
        base: Any,
        k: int,
        tau: float = 0.5,
        seed: int = 0,
        max_edits: int | None = None,
        code: RoutingCode | None = None,
        max_pages: int | None = None,
        part: Part | None = None,
        beside: int = 0,
    ) -> None:
        super().__init__()
        width, outputs = linear_shape(base)
        device = device_beside(base)
        self.base, self.offloaded = base, offloaded(base)
        self.tophash = TopHash(width, k, seed, device)
        self.store = MaskStore(width, k, max_edits, device)
        self.part, self.store.part = part, part
        given = (outputs + beside, dtype_beside(base), device, max_pages)
        self.memory = ResidualMemory(width, *given) if part is None else PartMemory(part, *given)
        self._beside = beside
        self.further: tuple[Any, ...] = ()
        """Each `FurtherLinear` to which it adds too, in the order in which a pass reaches them."""
        self.code: RoutingCode | None = code
        self.codes: CodeStore | None = None
        if code is not None:
            self.codes = CodeStore(code.width, code.k, min_overlap(tau, code.k), device)
        self.turns, self.views = Turns(), Views()
        self._tau = tau
        self.searched.set_min_overlap(self.min_overlap)
        self.router: Any = None  # called with inputs [B, S, D], it says where they are routed: Routed or None
        self.written = 0
        """How often W_m was changed in a `changing` block."""
        self._said = False
        self.number = tickets.enrol(self)
        self.register_state_dict_post_hook(model_state.base_keys_as_own)
        self.register_load_state_dict_pre_hook(model_state.own_keys_as_base)
        self.train(base.training)

    @property
    def tau(self) -> float:
        """The threshold on the overlap ratio, in (0, 1]. Setting it sets every edit's; `store` may change one's."""
        return self._tau

    @tau.setter
    def tau(self, value: float) -> None:
        least = min_overlap(value, self.searched.k)
        with self.changing():
            self.searched.set_min_overlap(least)
            self._tau = value

    @property
    def min_overlap(self) -> int:
        """tau in bits."""
        return min_overlap(self._tau, self.searched.k)

    @property
    def searched(self) -> MaskStore | CodeStore:
        """Where a prompt's edit is looked for: among the masks, or among the routing codes where there are such."""
        return self.store if self.codes is None else self.codes

    @property
    def hashing(self) -> TopHash:
        """How prompts are hashed."""
        return self.tophash

    @property
    def k(self) -> int:
        """Columns of an edit."""
        return self.tophash.k

    @property
    def mu(self) -> torch.Tensor:
        """The background mean, float32 [D]."""
        return self.tophash.mu

    @property
    def permutation(self) -> torch.Tensor:
        """int32 [D], where TopHash sends each input."""
        return self.tophash.permutation

    @property
    def in_features(self) -> int:
        """D."""
        return self.tophash.width

    @property
    def out_features(self) -> int:
        """O."""
        return self.memory.outputs - self._beside

    @property
    def outputs(self) -> slice | None:
        """Which outputs of W_m are its own, where it has further layers, whose come behind them; None: all."""
        return slice(0, self.out_features) if self._beside else None

    @property
    def view(self) -> View:
        """What a forward pass reads at this moment, in this thread or task: the memory as it is, or as it was."""
        current = self.views.current if self.views.outdated else None
        if current is not None:
            return current
        own: dict[str, Any] = self._modules  # each by its name: as attributes they are looked for in three places
        return View(own["store"], own["memory"], own.get("codes"))

    def search(
        self, mask: torch.Tensor, asked: Sequence[banks.Asked] | None = None, words: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Masks int32 [B, W] -> best edit int32 [B] or -1, overlap int32 [B], in the memory that a pass reads now.

        With routing codes: those of each prompt, int32 [B, 3, W]. `asked`: the named banks that each asks for, B sets;
        by default none. `words`: their tokens, where edits have subjects; see `CodeStore.match`.
        """
        view = self.view
        return banks.search(view.store, view.codes, self.agreed(mask).to(view.store.masks.device), asked, words)

    def hash(
        self, x: torch.Tensor, prompt_mask: torch.Tensor | None = None, *, check: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Activations [B, S, D], prompt tokens bool [B, S] (default: all) -> masks int32 [B, W], columns int32 [B, k].

        `check`: raise where a sequence has no prompt token or activations are not finite; it waits for the device.
        """
        if self.part is None:
            return self.tophash(x, prompt_mask, check=check)
        every = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        mean = self.tophash.mean(x, every if prompt_mask is None else prompt_mask, check=check)
        return self.hash_mean(mean, check=check)

    def mean(self, x: torch.Tensor, marked: torch.Tensor) -> torch.Tensor:
        """Activations [B, S, D], marked tokens bool [B, S] -> their mean, float32 [B, D]; NaN where none is marked."""
        return self.tophash.mean(x, marked, check=False)

    def hash_mean(self, mean: torch.Tensor, *, check: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        """As `hash`, of the mean float32 [B, D] over each prompt's tokens."""
        return self.tophash.hash(self.whole(mean) - self.tophash.mu, check=check)

    def agreed(self, tensor: torch.Tensor) -> torch.Tensor:
        """Where several processes share the layer, the first one's tensor; collective there."""
        return tensor if self.part is None else self.part.agreed(tensor)

    def whole(self, own: torch.Tensor) -> torch.Tensor:
        """Of the inputs at hand, [..., D], those of all processes where several share the layer; collective there."""
        return own if self.part is None else self.part.gathered(own)

    def match(self, x: torch.Tensor, prompt_mask: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Activations [B, S, D], prompt tokens bool [B, S] -> best edit int32 [B] or -1, overlap int32 [B].

        By masks, also where a language model routes by codes.
        """
        mask, _ = self.hash(x, prompt_mask, check=False)
        return banks.search(self.view.store, None, mask)

    @contextmanager
    def learning(self) -> Iterator[None]:
        """Within the block, only this thread prepares changes of the memory; its own passes see the memory as it is."""
        with self.turns.learning(), self.views.latest(), without_autocast():
            yield

    @contextmanager
    def changing(self, *, page: int | None = None, rows: bool = False) -> Iterator[None]:
        """Within the block, forward passes of other threads wait; all that is changed in it appears at once.

        Generations under way go on with the memory as it was. Of two blocks of which one is inside of the other, the
        outer one counts.

        Args:
            page (int, optional): the page of W_m that the block changes. Default: none.
            rows (bool): it changes rows of the store that are in use, or deletes edits. Edits may be added, pages
                opened, and tau changed in any case. Default: False.

        Raises:
            MemoirError: called from within a forward pass of this layer.
        """
        with self.turns.changing() as outermost:
            if not outermost:
                yield
                return
            self.written += page is not None
            self._await_device()  # passes whose kernels are still queued
            self.views.keep(View(self.store, self.memory, self.codes), page=page, rows=rows)
            try:
                yield
            finally:
                self._await_device()  # before a pass on another stream reads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [B, S, D] or [B, D] -> the same shape with O outputs; all dimensions but first and last are tokens.

        Raises:
            ValueError: x has fewer dimensions.
            MemoirError: `torch.compile` looks at a layer with further ones, or at a part of one.
        """
        if self.part is not None:
            return self._in_parts(self.part, x)
        if self.further:
            compiled.require_not_compiled()
        y = self.base(x)
        return compiled.joined(self, x, y) if compiled.tracing() else self.joined(x, y)

    def _in_parts(self, part: Part, x: torch.Tensor) -> torch.Tensor:
        """As `forward`, of this process's inputs: what the memory adds to its summand takes part in the layer's sum."""
        if compiled.tracing():
            raise MemoirError("a model whose edited layer is split over processes cannot be compiled with its memory")
        if self.replacement is not None:
            return self.joined(x, self.base(x))
        return part.summed(self.base, self.joined(x, part.product(self.base, x)))

    def joined(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The output for inputs x, of which the base layer makes y."""
        if x.dim() == 2 and self.router is not None:  # the tokens of all sequences in one row
            x = self.router.in_rows(x)
            return self.joined(x, y.view(*x.shape[:2], -1)).flatten(0, 1)
        if (own := self.replacement) is not None:
            return own(x, y)
        if x.dim() < 2:
            raise ValueError(f"x must be [B, S, D] or [B, D], got {list(x.shape)}")
        if torch.compiler.is_compiling():
            return self._remember(x, y)
        try:
            self.turns.enter()
            return self._remember(x, y)
        finally:
            self.turns.leave()

    def _remember(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Adds the matched edits' product to the base layer's output."""
        tokens = x if x.dim() == 3 else x.reshape(x.shape[0], math.prod(x.shape[1:-1]), x.shape[-1])
        routed = self.asked(tokens)
        return y if routed is None else added(y, tokens, routed, self.view.memory, self.outputs)

    def asked(self, x: torch.Tensor) -> Routed | None:
        """Where the sequences of inputs [B, S, D] read the memory; None where they are known to read none."""
        return self.router(x) if self.router else self.routed(self.match(x)[0])

    def routed(self, edit: torch.Tensor) -> Routed | None:
        """Where sequences that follow `edit` int32 [B] read the memory; None where they are known to follow none."""
        store = self.view.store
        if len(store) == 0 or follows_nothing(edit):
            return None
        return Routed(*store.reads(edit))

    def _await_device(self) -> None:
        device = self.memory.table.device
        if device.type not in ("cpu", "meta"):
            torch.accelerator.synchronize(device)

    def __deepcopy__(self, memo: dict[int, Any]) -> "MemoirLinear":
        """As by `__getstate__`, which has to copy what a pickle is made of later; here, nothing is copied twice."""
        other = memo[id(self)] = type(self).__new__(type(self))
        with self.turns.reading():  # of the model, to which the rest leads, a copy may take long
            copy.deepcopy([self._modules[name] for name in self.own if name in self._modules], memo)
        other.__setstate__(copy.deepcopy(super().__getstate__(), memo))
        return other

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        with self.turns.reading():
            own = {name: copy.deepcopy(self._modules[name]) for name in self.own if name in self._modules}
        hold(own)
        return {**state, "_modules": {**self._modules, **own}}

    def extra_repr(self) -> str:
        return f"tau={self.tau}"
