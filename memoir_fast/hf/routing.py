"""Which edit each running sequence follows, from its prefill through every decode step.

A route is decided on a sequence's prompt and then belongs to the sequence: it is kept on the cache object with which
the model is called, so that generations which take turns on one model never mix, and it is reordered, repeated,
cropped and copied together with the keys and values. Nothing is read back from the device.
"""

import functools
import inspect
import itertools
import types
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import nn

from memoir_fast.errors import MemoirError, PackedBatchError
from memoir_fast.hf import banks
from memoir_fast.hf.around import Around
from memoir_fast.hf.attention_mask import real_tokens
from memoir_fast.hf.cache import find_cache, held, remember, remembered
from memoir_fast.hf.call import Call, resume, running, suspend
from memoir_fast.hf.compiled import Tracing
from memoir_fast.hf.hidden import batch_shape, in_rows
from memoir_fast.hf.packed import WHAT_INSTEAD, require_rows
from memoir_fast.hf.prompt import prompt_positions
from memoir_fast.hf.routing_site import RoutingSite
from memoir_fast.hf.sequence_state import PromptsRead, SequenceState, TokenMean
from memoir_fast.modules import MemoirLinear
from memoir_fast.modules.banks import Asked
from memoir_fast.modules.memoir_linear import Routed


class Route(NamedTuple):
    """Where one sequence went: the edit's id or -1, and the best overlap ratio (None where the route was forced)."""

    edit_id: int
    overlap: float | None


@dataclass(frozen=True)
class _Overrides:
    """What blocks of code ask of a router."""

    disabled: bool = False
    forced: tuple[int, ...] | None = None
    lengths: tuple[int, ...] | None = None
    generate_prompt: int | None = None  # positions that are prompt, in model.generate
    asked_banks: Asked | tuple[Asked, ...] | None = None


_Decided = tuple[torch.Tensor, torch.Tensor | None]  # edits int32 [B], overlap int32 [B] (None where forced)

_overrides: ContextVar[dict[int, _Overrides] | None] = ContextVar("memoir_fast_overrides", default=None)
_decided: ContextVar[dict[int, _Decided] | None] = ContextVar("memoir_fast_decided", default=None)
_NO_OVERRIDES = _Overrides()
_numbers = itertools.count()


class Router:
    """Decides and remembers the routes of one model's sequences.

    Args:
        model: the language model whose `generate` is watched.
        decoder: the module that is called with an attention mask and a cache (`model.base_model`).
        layer: the edited layer, inside of decoder.
    """

    def __init__(self, model: Any, decoder: nn.Module, layer: MemoirLinear) -> None:
        self._model, self._layer = model, layer
        self._number = next(_numbers)
        self._parameters = list(inspect.signature(decoder.forward).parameters)
        self._last: _Decided | None = None  # of any thread
        self._own: dict[str, Any] = {}
        self.site: RoutingSite | None = None
        """Where routing codes are made; None where masks route."""
        self.tracing = Tracing(self, layer)
        """What it does in a pass that is compiled."""
        self._handles = [
            decoder.register_forward_pre_hook(self.tracing.before, with_kwargs=True),
            decoder.register_forward_hook(self.tracing.after, with_kwargs=True, always_call=True),
        ]
        layer.router = self
        try:
            self.site = RoutingSite(model, layer, layer.code, self.tracing) if layer.code is not None else None
            self._wrap("generate", "_generating")
            self._wrap("init_continuous_batching", "_batching")
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Leaves the model as it was."""
        for handle in self._handles:
            handle.remove()
        if self.site is not None:
            self.site.remove()
        self._forget_own()
        self._layer.router = None
        for name, own in self._own.items():
            if own is not None:
                setattr(self._model, name, own)
            else:
                self._model.__dict__.pop(name, None)

    def forget_last(self) -> None:
        """Empties `last_routes`."""
        self._last = None
        self._forget_own()

    def _forget_own(self) -> None:
        _decided.set({number: one for number, one in (_decided.get() or {}).items() if number != self._number})

    @contextmanager
    def overridden(self, **changes: Any) -> Iterator[None]:
        """Within the block, what is given overrides routing for this router, in this thread or task."""
        current = _overrides.get() or {}
        token = _overrides.set({**current, id(self): replace(current.get(id(self), _NO_OVERRIDES), **changes)})
        try:
            yield
        finally:
            _overrides.reset(token)

    @property
    def disabled(self) -> bool:
        """Whether no sequence shall be followed now, in this thread or task."""
        return self._asked.disabled

    @property
    def _asked(self) -> _Overrides:
        return (_overrides.get() or {}).get(id(self), _NO_OVERRIDES)

    @property
    def last_routes(self) -> list[Route]:
        """The routes decided last, a row each: in this thread or task, or in any where it has decided none.

        Reading them waits for the device.
        """
        last = (_decided.get() or {}).get(self._number, self._last)
        if last is None:
            return []
        edits, overlap = last
        ratios: Sequence[float | None] = [None] * len(edits)
        if overlap is not None:
            ratios = (overlap.double() / self._layer.searched.k).tolist()
        return [Route(edit, ratio) for edit, ratio in zip(edits.tolist(), ratios, strict=True)]

    def followed(self, cache: Any) -> list[int]:
        """The edits that the sequences of a cache follow, a row each; [] where it carries no routes of this router."""
        state = remembered(cache)
        if state is None or state.owner != self._number:
            return []
        state.look_again(self._layer.view.store)
        return state.route.tolist()

    @torch.no_grad()
    def __call__(self, x: torch.Tensor) -> Routed | None:
        """Where each sequence of a batch of layer inputs [B, S, D] reads the memory; None: nowhere."""
        call = self._call
        if call is None:
            return self._outside(x) if self.site is not None else self._read(Call(), x)
        if call.decided:
            if call.routed is None:
                return None
            call.state.look_again(self._layer.view.store)  # a change since then has copied what this pass reads
            routed = call.state.routed(call.routed.helped)
            return None if routed is None else routed.to(x.device)
        if self._decoding(call, x):
            return self._say(call, x)
        if self.site is not None:
            block = self.site.code.block
            raise MemoirError(f"the edited layer was reached before block {block}, where routes are made")
        return self._read(call, x)

    def edits(self, x: torch.Tensor) -> torch.Tensor:
        """As a call, within a forward pass: the edit that each sequence follows, int32 [B], or -1."""
        self(x)
        call = self._call
        assert call is not None
        return call.state.route

    def embed(self, ids: torch.Tensor) -> None:
        """Takes note of the token ids int64 [B, S] that a forward pass embeds."""
        call = self._call
        if call is not None:
            call.ids = ids

    @torch.no_grad()
    def enter(self, hidden: torch.Tensor) -> None:
        """Decides on the hidden states [B, S, H] that enter the routing site's block."""
        call = self._call
        if call is None or self._decoding(call, hidden):
            return
        views = self._layer.views
        if not views.generating:  # what is added at the edited layer must be of the memory that decides here
            call.view = ExitStack()
            call.view.enter_context(views.generation())
        with self._layer.turns.reading():
            call.routed, call.decided = self._read(call, hidden), True

    def in_rows(self, x: torch.Tensor) -> torch.Tensor:
        """Inputs [B * S, D] of a layer that is given all tokens of a batch in one row, as [B, S, D]."""
        call = self._call
        return in_rows(x, None if call is None else batch_shape(*call.given))

    @property
    def _call(self) -> Call | None:
        return running(self)

    def _outside(self, x: torch.Tensor) -> Routed | None:
        """The layer is called outside of a forward pass of the decoder, as gradient checkpoints do: as decided last."""
        last = (_decided.get() or {}).get(self._number, self._last)
        if last is None or len(last[0]) != len(x):
            raise MemoirError("routes are made by the whole model: its edited layer cannot be called by itself")
        return self._layer.routed(last[0].to(x.device))

    def _decoding(self, call: Call, x: torch.Tensor) -> bool:
        """Whether the tokens of a pass are said by the model; else they are a prompt, or a part of one."""
        if call.state is None:
            return False
        prompt_end = self._asked.generate_prompt
        return call.length >= prompt_end if prompt_end is not None else x.shape[1] == 1

    def _require_batch(self, state: SequenceState | None, batch: int) -> None:
        if state is not None and len(state.route) != batch:
            raise ValueError(f"the cache holds {len(state.route)} sequences, the model was called with {batch}")

    def _say(self, call: Call, x: torch.Tensor) -> Routed | None:
        """Goes on where the model speaks: inputs x [B, S, D]."""
        state = call.state
        self._require_batch(state, len(x))
        state.look_again(self._layer.view.store)
        state.say(self._spoken(call, x))
        routed = state.help(x.shape[1])
        return None if self._asked.disabled else routed

    def _read(self, call: Call, x: torch.Tensor) -> Routed | None:
        """Reads a prompt or a part of one, x [B, S, D or H] at the place where routes are made, and decides."""
        overrides, state = self._asked, call.state
        batch, tokens = x.shape[:2]
        self._require_batch(state, batch)
        start, prompt_end = call.length, overrides.generate_prompt
        real = real_tokens(call.attention_mask, start, batch, tokens, x.device)
        prompt, said = real, 0
        if overrides.lengths is not None:
            prompt = real & (real.cumsum(dim=1) <= _per_row(overrides.lengths, batch, "prompts").to(x.device)[:, None])
        elif prompt_end is not None and start + tokens > prompt_end:
            said = start + tokens - prompt_end
            prompt = real & (torch.arange(start, start + tokens, device=x.device) < prompt_end)
        state = call.state = self._joined(call, x, prompt)
        self._decide(state, overrides, batch)
        state.length += tokens - said
        state.end_prompt()
        helped = self._helped(state, real, prompt)
        if said:
            state.say(self._spoken(call, x)[:, tokens - said :])
            if state.left is not None:
                state.left = state.left - said
        elif prompt is not real:
            self._join_rest(call, x, real & ~prompt)
        return None if overrides.disabled else state.routed(helped)

    def _joined(self, call: Call, x: torch.Tensor, prompt: torch.Tensor) -> Any:
        """The state of the call's sequences, with the prompt's tokens joined to it."""
        state, length = call.state, call.length
        if self.site is not None:
            count = prompt.sum(dim=1, keepdim=True, dtype=torch.float32)
            ids = self.site.ids(call, x.shape[:2])
            if state is None:
                return PromptsRead(self.site.read(None, None, x, ids, prompt), count, length, self._number)
            state.read(self.site.read(state.sums, state.said(), x, ids, prompt), count)
        elif state is None:
            return TokenMean(*self._mean(x, prompt), length=length, owner=self._number)
        else:
            state.read(*self._mean(x, prompt))
        return state

    def _spoken(self, call: Call, x: torch.Tensor) -> torch.Tensor:
        """What `say` takes of the tokens at hand: their layer inputs, or their ids."""
        return x if self.site is None else self.site.ids(call, x.shape[:2])

    def _join_rest(self, call: Call, x: torch.Tensor, after: torch.Tensor) -> None:
        """Joins tokens behind the prompts of a pass in which each row's prompt has a length of its own."""
        if self.site is None:
            call.state.read(*self._mean(x, after))
        else:
            ids = torch.where(after, self.site.ids(call, x.shape[:2]), -1)
            state = call.state
            state.read(self.site.code.hear(state.sums, ids), after.sum(dim=1, keepdim=True, dtype=torch.float32))

    def _helped(self, state: SequenceState, real: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor | None:
        """To which tokens bool [B, S] of a prompt's pass the memory adds; None: to all."""
        if state.left is None or prompt is real:
            return None
        after = real & ~prompt
        return ~after | (after.cumsum(dim=1) <= state.left.to(after.device)[:, None])

    def _decide(self, state: Any, overrides: _Overrides, batch: int) -> None:
        """Sets the state's route, and how long the memory helps to say the target."""
        overlap: torch.Tensor | None = None
        device, chat = state.route.device, None
        if overrides.disabled:
            route = torch.full((batch,), -1, dtype=torch.int32, device=device)
        elif overrides.forced is not None:
            route = _per_row(overrides.forced, batch, "routed").to(device, torch.int32)
        else:
            masks = self.site.code.masks(state.sums) if self.site else self._layer.hash_mean(state.mean, check=False)[0]
            asked = banks.per_row(overrides.asked_banks, batch, overrides.generate_prompt is not None)
            route, overlap = self._layer.search(masks, asked)
        if self.site is not None:
            chat = state.sums.chat
        store = self._layer.view.store
        state.follow(route, store)
        state.left = store.help(route, chat)
        last = route, overlap
        self._last = last
        _decided.set({**(_decided.get() or {}), self._number: last})

    def _mean(self, x: torch.Tensor, marked: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean float32 [B, D] of the marked tokens, NaN where there is none, and their count float32 [B, 1]."""
        mean = self._layer.mean(x, marked)
        return mean, marked.sum(dim=1, keepdim=True, dtype=torch.float32)

    def named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of the decoder by name."""
        return {**dict(zip(self._parameters, args, strict=False)), **kwargs}

    def before(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Begins a pass of the decoder."""
        given, cache = self.named(args, kwargs), find_cache((args, kwargs))
        if not self._asked.disabled:
            require_rows(given, cache)
        state = remembered(cache)
        if state is not None and state.owner != self._number:
            state = None  # routes of a memory that was detached say nothing here
        call = Call(
            given.get("attention_mask"),
            cache,
            state,
            state.length if state is not None else held(cache),
            (args, kwargs),
        )
        cut_short = self._call  # by Ctrl-C
        if cut_short is not None and cut_short.view is not None:
            cut_short.view.close()
        resume(self, call)

    def after(self, output: Any) -> None:
        """Ends it."""
        call = suspend(self)
        if call is None:
            return
        if call.view is not None:
            call.view.close()
        cache = call.cache if call.cache is not None else find_cache(output)
        if cache is not None and call.state is not None:
            remember(cache, call.state)

    def _wrap(self, name: str, around: str) -> None:
        """Lets `around(method, *args)` stand in the place of the model's method of that name, where it has one."""
        if getattr(self._model, name, None) is not None:
            self._own[name] = self._model.__dict__.get(name)
            setattr(self._model, name, Around(self, name, around))

    def method(self, name: str) -> Any:
        """The model's own method of that name, which something of the router's stands in place of."""
        own = self._own[name]
        return own if own is not None else types.MethodType(getattr(type(self._model), name), self._model)

    def _batching(self, start: Any, *args: Any, **kwargs: Any) -> Any:
        """What `model.generate_batch` begins with. Its passes, in a thread of their own, are disabled as it is."""
        if not self._asked.disabled:
            raise PackedBatchError(f"continuous batching puts all sequences into one row: {WHAT_INSTEAD}")
        manager = start(*args, **kwargs)
        loop = getattr(manager, "_run_generation_loop", None)
        if loop is not None:
            manager._run_generation_loop = functools.partial(copy_context().run, loop)
        return manager

    def _generating(self, generate: Any, *args: Any, **kwargs: Any) -> Any:
        """Runs `model.generate`, noting how many positions are its prompt, which no forward pass can tell."""
        which = kwargs.pop("memoir_banks", None)
        changes = {} if which is None else {"asked_banks": banks.asked(which)}
        positions = prompt_positions(self._model, generate, args, kwargs)
        with self._layer.views.generation(), self.overridden(generate_prompt=positions, **changes):
            return generate(*args, **kwargs)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy is another router: caches that follow edits of the one say nothing to the other."""
        self.__dict__.update(state, _number=next(_numbers))


def _per_row(values: tuple[int, ...], batch: int, what: str) -> torch.Tensor:
    if len(values) not in (1, batch):
        raise ValueError(f"{what}(...) was given {len(values)} values for a batch of {batch} sequences")
    return torch.tensor(values).expand(batch)
