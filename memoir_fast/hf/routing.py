"""Which edit each running sequence follows, from its prefill through every decode step.

A route is decided on a sequence's prompt and then belongs to the sequence: it is kept on the cache object with which
the model is called, so that generations which take turns on one model never mix, and it is reordered, repeated,
cropped and copied together with the keys and values. Nothing is read back from the device.
"""

import inspect
import itertools
import types
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import nn

from memoir_fast.errors import MemoirError, PackedBatchError
from memoir_fast.hf import banks, continuous
from memoir_fast.hf.around import Around
from memoir_fast.hf.beside import apart, beside, require_apart, step
from memoir_fast.hf.cache import find_cache, held, remember, remembered
from memoir_fast.hf.call import Call, resume, running, suspend
from memoir_fast.hf.compiled import Tracing
from memoir_fast.hf.following import Following
from memoir_fast.hf.hidden import batch_shape, in_rows
from memoir_fast.hf.overrides import Generation, Overrides, asked_of, overriding
from memoir_fast.hf.packed import WHAT_INSTEAD, paged, spans
from memoir_fast.hf.pieces import Piece, Pieces, SeveralInRow, packed_pieces
from memoir_fast.hf.prompt import prompt_positions
from memoir_fast.hf.replays import Replays, in_backward, run_again_later
from memoir_fast.hf.routing_site import RoutingSite
from memoir_fast.hf.tensor_parallel import require_whole
from memoir_fast.modules import MemoirLinear
from memoir_fast.modules.routed import Routed


class Route(NamedTuple):
    """Where one sequence went: the edit's id or -1, and the best overlap ratio (None where the route was forced)."""

    edit_id: int
    overlap: float | None


_Decided = tuple[torch.Tensor, torch.Tensor | None]  # edits int32 [B], overlap int32 [B] (None where forced)

_decided: ContextVar[dict[int, _Decided] | None] = ContextVar("memoir_fast_decided", default=None)
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
        self.following = Following(layer, next(_numbers))
        """What is done for the sequences of a pass."""
        self._parameters = list(inspect.signature(decoder.forward).parameters)
        self.replays = Replays()
        """What passes with gradients read, which a backward pass may run again."""
        self._last: _Decided | None = None  # of any thread
        self._own: dict[str, Any] = {}
        self.tracing = Tracing(self, layer)
        """What it does in a pass that is compiled."""
        self._handles = [
            decoder.register_forward_pre_hook(self.tracing.before, with_kwargs=True),
            decoder.register_forward_hook(self.tracing.after, with_kwargs=True, always_call=True),
        ]
        layer.router = self
        try:
            if layer.code is not None:
                self.following.site = RoutingSite(model, layer, layer.code, self.tracing)
            self._wrap("generate", "_generating")
            self._wrap("init_continuous_batching", "_batching")
            self._wrap("generate_batch", "_generating_batch")
        except BaseException:
            self.remove()
            raise

    @property
    def site(self) -> RoutingSite | None:
        """Where routing codes are made; None where masks route."""
        return self.following.site

    @property
    def _number(self) -> int:
        return self.following.number

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

    def overridden(self, **changes: Any) -> AbstractContextManager[None]:
        """Within the block, what is given overrides routing for this router, in this thread or task."""
        return overriding(self, **changes)

    @property
    def disabled(self) -> bool:
        """Whether no sequence shall be followed now, in this thread or task."""
        return self._asked.disabled

    @property
    def _asked(self) -> Overrides:
        return asked_of(self)

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
        if state is None or state.owner != self._number or isinstance(state, SeveralInRow):
            return []
        state.look_again(self._layer.view.store)
        return state.route.tolist()

    def __call__(self, x: torch.Tensor) -> Routed | None:
        """Where each sequence of a batch of layer inputs [B, S, D] reads the memory; None: nowhere."""
        call = self._call
        if call is None:
            if in_backward():
                return self.replays.read(x, self._written)
            return self._outside(x) if self.site is not None else self._read(Call(), x)
        if self._layer.further:
            self._hold(call)
        call.read, call.reached = self._inside(call, x), True
        return self._noted(call, x, call.read)

    @torch.no_grad()
    def _inside(self, call: Call, x: torch.Tensor) -> Routed | None:
        if call.pieces is not None:
            if not call.pieces.decided:
                self._decide_pieces(call, x)
            return call.pieces.routed(x)  # type: ignore[no-any-return]
        if call.decided:
            if call.routed is None:
                return None
            call.state.look_again(self._layer.view.store)  # a change since then has copied what this pass reads
            routed = call.state.routed(call.routed.helped)
            return None if routed is None else routed.to(x.device)
        asked = self._asked
        if self.following.speaking(call, x.shape[1], asked):
            return self.following.say(call, x, asked)
        if self.site is not None:
            block = self.site.code.block
            raise MemoirError(f"the edited layer was reached before block {block}, where routes are made")
        return self._read(call, x)

    def again(self, x: torch.Tensor) -> Routed | None:
        """As a call, at a further layer: where the edited layer's sequences read, which it must have run for."""
        call = self._call
        if call is None:
            return self.replays.read(x, self._written) if in_backward() else self._outside(x)
        if not call.reached:
            raise MemoirError("a further layer was reached before the edited layer, where sequences are followed")
        if call.pieces is not None:
            return self._noted(call, x, call.pieces.routed(x))
        routed = None if call.read is None else call.state.again(call.read, self._layer.view.store)
        return self._noted(call, x, None if routed is None else routed.to(x.device))

    def _noted(self, call: Call, x: torch.Tensor, routed: Routed | None) -> Routed | None:
        if run_again_later(call.gradients):
            self.replays.note(x, routed, self._written)
        return routed

    @property
    def _written(self) -> tuple[int, int]:
        return self._layer.written, self._layer.store.stamp

    def _hold(self, call: Call) -> None:
        """From now on a pass reads the memory as it is, to its end."""
        if call.view is None and not self._layer.views.generating:
            call.view = ExitStack()
            call.view.enter_context(self._layer.views.generation())

    def edits(self, x: torch.Tensor) -> torch.Tensor:
        """As a call, within a forward pass: the edit that each sequence follows, int32 [B], or -1.

        Of several sequences in a row, the edit that each token follows, int32 [B * S].
        """
        self(x)
        call = self._call
        assert call is not None
        edits: torch.Tensor = call.state.route if call.pieces is None else call.pieces.edits(x)
        return edits

    def embed(self, ids: torch.Tensor) -> None:
        """Takes note of the token ids int64 [B, S] that a forward pass embeds."""
        call = self._call
        if call is not None:
            call.ids = ids

    def enter(self, hidden: torch.Tensor) -> None:
        """Decides on the hidden states [B, S, H] that enter the routing site's block."""
        call = self._call
        if call is None or call.pieces is None and self.following.speaking(call, hidden.shape[1], self._asked):
            return
        self._decide(call, hidden)

    @torch.no_grad()
    def _decide(self, call: Call, hidden: torch.Tensor) -> None:
        self._hold(call)  # what is added at the edited layer must be of the memory that decides here
        with self._layer.turns.reading():
            if call.pieces is not None:
                self._decide_pieces(call, hidden)
            else:
                call.routed, call.decided = self._read(call, hidden), True

    def in_rows(self, x: torch.Tensor) -> torch.Tensor:
        """Inputs [B * S, D] of a layer that is given all tokens of a batch in one row, as [B, S, D]."""
        call = self._call
        return in_rows(x, None if call is None else batch_shape(*call.given))

    @property
    def _call(self) -> Call | None:
        return running(self)

    def _outside(self, x: torch.Tensor) -> Routed | None:
        """The layer is called outside of a forward pass of the decoder: as decided last."""
        last = (_decided.get() or {}).get(self._number, self._last)
        if last is None or len(last[0]) != len(x):
            raise MemoirError("routes are made by the whole model: its edited layer cannot be called by itself")
        return self._layer.routed(last[0].to(x.device))

    @torch.no_grad()
    def _read(self, call: Call, x: torch.Tensor) -> Routed | None:
        """Reads a prompt or a part of one, and decides."""
        routed = self.following.read(call, x, self._asked)
        assert call.last is not None
        if call.generation is not None and not call.others:
            call.generation.decided = call.last
        self._note(call.last)
        return routed

    def _decide_pieces(self, call: Call, x: torch.Tensor) -> None:
        call.pieces.decide(call, x)
        if call.pieces.last is not None:
            self._note(call.pieces.last)

    def _note(self, last: _Decided) -> None:
        self._last = last
        _decided.set({**(_decided.get() or {}), self._number: last})

    def named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of the decoder by name."""
        return {**dict(zip(self._parameters, args, strict=False)), **kwargs}

    def before(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Begins a pass of the decoder."""
        given, cache, asked = self.named(args, kwargs), find_cache((args, kwargs)), self._asked
        state = remembered(cache)
        if state is not None and state.owner != self._number:
            state = None  # routes of a memory that was detached say nothing here
        found = None if asked.disabled else self._pieces(given, cache, asked)
        if isinstance(state, SeveralInRow):
            if not asked.disabled:
                raise PackedBatchError(f"the cache was filled with several sequences in one row: {WHAT_INSTEAD}")
            state = None
        call = Call(
            given.get("attention_mask"),
            cache,
            state,
            state.length if state is not None else held(cache),
            (args, kwargs),
            generation=asked.generation,
            gradients=torch.is_grad_enabled(),
            others=asked.generation is not None and asked.generation.others(state),
        )
        if found is not None:
            call.pieces = Pieces(found, self.following, self._layer)
            call.state = SeveralInRow(self._number)
        cut_short = self._call  # by Ctrl-C
        if cut_short is not None and cut_short.view is not None:
            cut_short.view.close()
        resume(self, call)

    def _pieces(self, given: dict[str, Any], cache: Any, asked: Overrides) -> list[Piece] | None:
        """What of each sequence is in a pass that holds several in a row; None where each row is a sequence."""
        batches = continuous.serving(self)
        if batches is not None and paged(given):
            shape = batch_shape((), given)
            return batches.pieces(0 if shape is None else shape[1])
        found = spans(given, cache, asked.generate_prompt is not None, getattr(self._model, "config", None))
        return None if found is None else list(packed_pieces(found, asked))

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
            if call.generation is not None:
                call.generation.begin(call.state)

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
        """The manager of `model.init_continuous_batching`, whose requests it follows."""
        require_whole(self._model, "continuous batching")
        require_apart()
        with step():
            return continuous.follow(self, self._layer.views, start(*args, **kwargs))

    def _generating_batch(self, generate_batch: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Runs `model.generate_batch`, which logs errors of what is asked for its requests and raises none."""
        require_whole(self._model, "continuous batching")
        which = kwargs.pop("memoir_banks", None)
        with apart(), self.overridden(**({} if which is None else {"asked_banks": banks.asked(which)})):
            for row in range(len(inputs or ())):
                continuous.of_request(self, row, len(inputs))
            return generate_batch(inputs, *args, **kwargs)

    def _generating(self, generate: Any, *args: Any, **kwargs: Any) -> Any:
        """Runs `model.generate`, noting how many positions are its prompt, which no forward pass can tell."""
        which = kwargs.pop("memoir_banks", None)
        changes: dict[str, Any] = {} if which is None else {"asked_banks": banks.asked(which)}
        changes["generate_prompt"] = prompt_positions(self._model, generate, args, kwargs)
        own = changes["generation"] = Generation(bool(getattr(kwargs.get("generation_config"), "is_assistant", False)))
        with beside(), self._layer.views.generation(), self.overridden(**changes):
            output = generate(*args, **kwargs)
        if own.decided is not None:  # a negative prompt's pass, or a processor's, may have come behind its own
            self._note(own.decided)
        return output

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy is another router: caches that follow edits of the one say nothing to the other."""
        self.__dict__.update(state)
        self.following.number = next(_numbers)
