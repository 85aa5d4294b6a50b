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
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import nn

from memoir_fast.errors import PackedBatchError, UnsupportedModelError
from memoir_fast.hf.attention_mask import real_tokens
from memoir_fast.hf.cache import find_cache, held, holds_tuples, remember, remembered
from memoir_fast.hf.packed import evidence
from memoir_fast.hf.prompt import prompt_positions
from memoir_fast.hf.sequence_state import SequenceState
from memoir_fast.modules import MemoirLinear

_WHAT_INSTEAD = (
    "give each sequence a row of its own, e.g. generate on a padded batch. Inside of memoir.disabled() the model runs "
    "so, without its edits; memoir.detach() takes the memory off"
)


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


@dataclass
class _Call:
    """One forward pass of the decoder."""

    attention_mask: Any = None
    cache: Any = None
    state: SequenceState | None = None
    length: int = 0  # positions that the cache holds already


_Decided = tuple[torch.Tensor, torch.Tensor | None]  # edits int32 [B], overlap int32 [B] (None where forced)

_overrides: ContextVar[dict[int, _Overrides] | None] = ContextVar("memoir_fast_overrides", default=None)
_calls: ContextVar[dict[int, _Call] | None] = ContextVar("memoir_fast_calls", default=None)
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
        self._handles = [
            decoder.register_forward_pre_hook(self._before, with_kwargs=True),
            decoder.register_forward_hook(self._after, with_kwargs=True, always_call=True),
        ]
        layer.router = self
        try:
            self._wrap("generate", "_generating")
            self._wrap("init_continuous_batching", "_batching")
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Leaves the model as it was."""
        for handle in self._handles:
            handle.remove()
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
            ratios = (overlap.double() / self._layer.k).tolist()
        return [Route(edit, ratio) for edit, ratio in zip(edits.tolist(), ratios, strict=True)]

    def followed(self, cache: Any) -> list[int]:
        """The edits that the sequences of a cache follow, a row each; [] where it carries no routes of this router."""
        state = remembered(cache)
        if state is None or state.owner != self._number:
            return []
        self._drop_deleted(state)
        return state.route.tolist()

    @torch.no_grad()
    def __call__(self, x: torch.Tensor) -> torch.Tensor | None:
        """The route int32 [B] of each sequence in a batch of layer inputs [B, S, D]; None: add nothing to any."""
        call = (_calls.get() or {}).get(id(self)) or _Call()
        overrides = self._asked
        batch, tokens = x.shape[:2]
        state = call.state
        if state is not None and len(state.route) != batch:
            raise ValueError(f"the cache holds {len(state.route)} sequences, the model was called with {batch}")
        start = call.length
        prompt_end = overrides.generate_prompt
        decoding = start >= prompt_end if prompt_end is not None else tokens == 1
        if state is not None and decoding:
            self._drop_deleted(state)
            state.say(x)
            return None if overrides.disabled else state.route

        real = real_tokens(call.attention_mask, start, batch, tokens, x.device)
        prompt, said = real, 0
        if overrides.lengths is not None:
            prompt = real & (real.cumsum(dim=1) <= _per_row(overrides.lengths, batch, "prompts").to(x.device)[:, None])
        elif prompt_end is not None and start + tokens > prompt_end:
            said = start + tokens - prompt_end
            prompt = real & (torch.arange(start, start + tokens, device=x.device) < prompt_end)
        if state is None:
            state = call.state = SequenceState(*self._mean(x, prompt), length=start, owner=self._number)
        else:
            state.read(*self._mean(x, prompt))
        state.route = self._decide(state, overrides, batch)
        state.deletions = self._layer.view.store.deletions
        state.length += tokens - said
        state.end_prompt()
        if said:
            state.say(x[:, tokens - said :])
        elif prompt is not real:
            state.read(*self._mean(x, real & ~prompt))
        return None if overrides.disabled else state.route

    def _drop_deleted(self, state: SequenceState) -> None:
        store = self._layer.view.store
        state.drop_deleted(store.masks, store.deletions)

    def _decide(self, state: SequenceState, overrides: _Overrides, batch: int) -> torch.Tensor:
        overlap: torch.Tensor | None = None
        if overrides.disabled:
            route = torch.full((batch,), -1, dtype=torch.int32, device=state.mean.device)
        elif overrides.forced is not None:
            route = _per_row(overrides.forced, batch, "routed").to(state.mean.device, torch.int32)
        else:
            mask, _ = self._layer.hash_mean(state.mean, check=False)
            route, overlap = self._layer.search(mask)
        last = route, overlap
        self._last = last
        _decided.set({**(_decided.get() or {}), self._number: last})
        return route

    def _mean(self, x: torch.Tensor, marked: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean float32 [B, D] of the marked tokens, NaN where there is none, and their count float32 [B, 1]."""
        mean = self._layer.mean(x, marked)
        return mean, marked.sum(dim=1, keepdim=True, dtype=torch.float32)

    def _before(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = {**dict(zip(self._parameters, args, strict=False)), **kwargs}
        cache = find_cache((args, kwargs))
        if not self._asked.disabled:
            _require_rows(given, cache)
        state = remembered(cache)
        if state is not None and state.owner != self._number:
            state = None  # routes of a memory that was detached say nothing here
        call = _Call(given.get("attention_mask"), cache, state, state.length if state is not None else held(cache))
        _calls.set({**(_calls.get() or {}), id(self): call})  # takes the place of one that Ctrl-C has cut short

    def _after(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls = dict(_calls.get() or {})
        call = calls.pop(id(self), None)
        if call is None:
            return
        _calls.set(calls)
        cache = call.cache if call.cache is not None else find_cache(output)
        if cache is not None and call.state is not None:
            remember(cache, call.state)

    def _wrap(self, name: str, around: str) -> None:
        """Lets `around(method, *args)` stand in the place of the model's method of that name, where it has one."""
        if getattr(self._model, name, None) is not None:
            self._own[name] = self._model.__dict__.get(name)
            setattr(self._model, name, _Around(self, name, around))

    def method(self, name: str) -> Any:
        """The model's own method of that name, which something of the router's stands in place of."""
        own = self._own[name]
        return own if own is not None else types.MethodType(getattr(type(self._model), name), self._model)

    def _batching(self, start: Any, *args: Any, **kwargs: Any) -> Any:
        """What `model.generate_batch` begins with. Its passes, in a thread of their own, are disabled as it is."""
        if not self._asked.disabled:
            raise PackedBatchError(f"continuous batching puts all sequences into one row: {_WHAT_INSTEAD}")
        manager = start(*args, **kwargs)
        loop = getattr(manager, "_run_generation_loop", None)
        if loop is not None:
            manager._run_generation_loop = functools.partial(copy_context().run, loop)
        return manager

    def _generating(self, generate: Any, *args: Any, **kwargs: Any) -> Any:
        """Runs `model.generate`, noting how many positions are its prompt, which no forward pass can tell."""
        positions = prompt_positions(self._model, generate, args, kwargs)
        with self._layer.views.generation(), self.overridden(generate_prompt=positions):
            return generate(*args, **kwargs)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy is another router: caches that follow edits of the one say nothing to the other."""
        self.__dict__.update(state, _number=next(_numbers))


class _Around:
    """Stands in the place of a model's method, and can be copied and pickled with the model."""

    def __init__(self, router: Router, name: str, around: str) -> None:
        self._router, self._name, self._around = router, name, around
        functools.update_wrapper(self, router.method(name))
        del self.__wrapped__  # found when it is asked for: a copy has its own model's

    def __getattr__(self, name: str) -> Any:
        if name == "__wrapped__":  # signatures are read off it
            return self._router.method(self._name)
        raise AttributeError(name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._router, self._around)(self._router.method(self._name), *args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return object.__new__, (_Around,), {"_router": self._router, "_name": self._name, "_around": self._around}


def _require_rows(given: dict[str, Any], cache: Any) -> None:
    """Raises where the rows of a call are not sequences that can be followed."""
    if cache is None and holds_tuples(given.values()):
        raise UnsupportedModelError(
            "keys and values came as tuples of tensors, which cannot carry a route: give the model a cache object, "
            "e.g. transformers.DynamicCache"
        )
    shown = evidence(given, cache)
    if shown is not None:
        raise PackedBatchError(
            f"a forward pass holds several sequences in one row ({shown}), and a memory routes a row as a whole: "
            f"{_WHAT_INSTEAD}"
        )


def _per_row(values: tuple[int, ...], batch: int, what: str) -> torch.Tensor:
    if len(values) not in (1, batch):
        raise ValueError(f"{what}(...) was given {len(values)} values for a batch of {batch} sequences")
    return torch.tensor(values).expand(batch)
