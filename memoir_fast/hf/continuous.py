"""Follows the requests of transformers' continuous batching (`generate_batch`, `ContinuousBatchingManager`).

Its passes hold pieces of many requests in one row, with keys and values in blocks. Which request a piece belongs to is
told by transformers' own object for it: a request is marked when it is put into the manager's queue, in the thread that
adds it, and the mark goes with it through chunks, decode steps, eviction and forks. What is relied on is looked for by
name before a manager is given back; where something is missing, that is an error.
"""

import copy
import functools
import logging
import weakref
from collections.abc import Callable
from contextvars import Context, ContextVar
from dataclasses import replace
from typing import Any

from memoir_fast.errors import PackedBatchError
from memoir_fast.hf import beside
from memoir_fast.hf.call import Call
from memoir_fast.hf.overrides import Overrides, asked_of, overriding
from memoir_fast.hf.packed import WHAT_INSTEAD
from memoir_fast.hf.pieces import Piece
from memoir_fast.modules.views import Generation, Views

logger = logging.getLogger("memoir_fast")

# Of a manager's settings, those that are about speed alone, as they must be. Blocks that requests share were computed
# under the route of one of them; passes of a graph or a batch ahead are not made when their requests are looked at.
_SETTINGS = {
    "allow_block_sharing": False,
    "use_async_batching": False,
    "use_cuda_graph": (False, False),
    "varlen_compile_config": None,
    "decode_compile_config": None,
}
_OF_MANAGERS = (
    "add_requests",
    "batch_processor",
    "input_queue",
    "_create_batch_processor",
    "_generation_step",
    "_run_generation_loop",
)
_OF_REQUESTS = ("create_equivalent_initial_request", "fork", "position_offset", "initial_tokens")


class _Seen:
    """The memory as it was when a request was added, for as long as the request or a fork of it is there."""

    def __init__(self, views: Views) -> None:
        self.generation: Generation = views.begin()
        weakref.finalize(self, views.end, self.generation).atexit = False


class Request:
    """What is known of a request beside what transformers knows.

    Args:
        asked: what was asked for it, where it was added.
        seen: the memory that it sees.
    """

    def __init__(self, asked: Overrides, seen: _Seen | None) -> None:
        self.asked, self.seen = asked, seen
        self.state: Any = None
        """Its `SequenceState`; None before its first token, and where it is read anew."""

    def again(self) -> "Request":
        """The same request, before its first token."""
        return Request(self.asked, self.seen)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Request":
        fork = self.again()
        fork.state = copy.deepcopy(self.state, memo)
        return fork


class _Marked:
    """What a marked request does besides transformers' `RequestState`, of which its class becomes a subclass."""

    memoir_request: Request

    def create_equivalent_initial_request(self) -> Any:
        """A request that is evicted begins anew, with what was said behind its prompt."""
        return _mark(super().create_equivalent_initial_request(), self.memoir_request.again())  # type: ignore[misc]

    def update_and_check_completion(self, *args: Any, **kwargs: Any) -> Any:
        """A token has come, perhaps the last."""
        complete = super().update_and_check_completion(*args, **kwargs)  # type: ignore[misc]
        if complete:
            self.memoir_request.seen = None
        return complete


@functools.cache
def _marked(kind: type) -> type:
    return type(kind.__name__, (_Marked, kind), {"__module__": kind.__module__, "__qualname__": kind.__qualname__})


def _mark(state: Any, request: Request) -> Any:
    state.__class__, state.memoir_request = _marked(type(state)), request  # type: ignore[arg-type]
    return state


_serving: ContextVar["Batches | None"] = ContextVar("memoir_fast_batches", default=None)
_joining: ContextVar[list[tuple[list[int], Overrides]] | None] = ContextVar("memoir_fast_joining", default=None)


class Batches:
    """The requests of one manager, followed by one router.

    Args:
        router (Router): which follows them.
        views: those of its edited layer.
        manager: transformers' `ContinuousBatchingManager`; it must not run yet.

    Raises:
        PackedBatchError: something that is relied on is not as it is known, or the manager runs already.
    """

    def __init__(self, router: object, views: Views, manager: Any) -> None:
        self._router, self._views = router, views
        self._manager = weakref.ref(manager)
        self.disabled = asked_of(router).disabled
        """Whether it was made inside of `memoir.disabled()`; then its passes are those of the unedited model."""
        _require(manager)
        config = manager.continuous_batching_config
        changed = [] if self.disabled else [name for name, value in _SETTINGS.items() if getattr(config, name) != value]
        for name in changed:
            setattr(config, name, _SETTINGS[name])
        if changed:
            logger.info("continuous batching with a memory runs without %s", ", ".join(changed))
        if not self.disabled:
            manager._use_prefix_sharing = False
        manager.batch_processor = None  # one that was made before has other settings
        manager.memoir_batches = self
        manager.input_queue.put = functools.partial(self._put, _own(manager.input_queue, "put"))
        manager.add_requests = functools.partial(self._add_requests, _own(manager, "add_requests"))
        for name in ("_generation_step", "_create_batch_processor"):
            setattr(manager, name, functools.partial(_step, _own(manager, name)))
        beside.register(manager)
        manager._run_generation_loop = functools.partial(self._serve, _own(manager, "_run_generation_loop"))

    def serves(self, router: object) -> bool:
        """Whether a manager that it was made for may go on with this router as it is."""
        return self._router is router and self.disabled == asked_of(router).disabled

    def pieces(self, tokens: int) -> list[Piece]:
        """What of each request is in the pass that has begun, of so many tokens.

        Raises:
            PackedBatchError: that cannot be told.
        """
        manager: Any = self._manager()
        ends, found = 0, []
        for piece in manager.batch_processor.inputs_and_outputs.requests_in_batch:
            state, size = piece.state, piece.query_length
            request: Request | None = getattr(state, "memoir_request", None)
            if request is None or request.seen is None:
                raise PackedBatchError(f"request {state.request_id} was not added through its manager, or has ended")
            start = state.position_offset - size
            if start == 0:
                request.state = None
            known = 0 if request.state is None else request.state.length
            if start != known:
                raise PackedBatchError(
                    f"request {state.request_id} goes on at position {start}, {known} of its positions were seen"
                )
            call = Call(state=request.state, length=start)
            found.append(Piece((0, ends, ends + size), request.asked, call, request.seen.generation, request))
            ends += size
        if ends != tokens:
            raise PackedBatchError(f"a pass has {tokens} tokens, its requests have {ends}")
        return found

    def _put(self, put: Callable[..., Any], state: Any, *args: Any, **kwargs: Any) -> None:
        """A request is added, in the thread that asks for it."""
        if not self.disabled:
            rows = _joining.get() or []
            place = next((place for place, (ids, _) in enumerate(rows) if ids == state.initial_tokens), None)
            asked = self.of_row(0, 1) if place is None else rows.pop(place)[1]
            asked = replace(asked, generate_prompt=len(state.initial_tokens))
            _mark(state, Request(asked, _Seen(self._views)))
        elif not asked_of(self._router).disabled:
            raise PackedBatchError(
                "this manager was made inside of memoir.disabled(), its passes are the unedited model's: add requests "
                "inside of it too, or make another manager"
            )
        put(state, *args, **kwargs)

    def _add_requests(self, add: Callable[..., Any], inputs: Any, *args: Any, **kwargs: Any) -> Any:
        rows = [(list(ids), self.of_row(row, len(inputs))) for row, ids in enumerate(inputs)]
        token = _joining.set(rows)
        try:
            return add(inputs, *args, **kwargs)
        finally:
            _joining.reset(token)

    def of_row(self, row: int, requests: int) -> Overrides:
        """What is asked for one of several requests that are added together; ValueError where it cannot be."""
        return of_request(self._router, row, requests)

    def _serve(self, loop: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        """The manager's loop, in a thread of its own: what was in force where it was started says nothing here."""
        Context().run(self._served, loop, *args, **kwargs)

    def _served(self, loop: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        _serving.set(self)
        with overriding(self._router, disabled=self.disabled):
            loop(*args, **kwargs)


def _step(run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What goes by the kind of attention that a manager has given its model."""
    with beside.step():
        return run(*args, **kwargs)


def serving(router: object) -> Batches | None:
    """The manager of this router's requests whose loop this thread runs."""
    found = _serving.get()
    return found if found is not None and found._router is router else None


def of_request(router: object, row: int, requests: int) -> Overrides:
    """What is in force for one of several requests.

    Raises:
        ValueError: a list is not as long as the requests are many, or prompt lengths are asked for.
    """
    asked = asked_of(router)
    if asked.lengths is not None:
        raise ValueError("prompts(...) says nothing to continuous batching: a request's prompt is all that is added")
    return asked.of_row(row, requests)


def follow(router: object, views: Views, manager: Any) -> Any:
    """Makes a manager follow its requests by a router, and gives it back. Raises what `Batches` raises."""
    known = getattr(manager, "memoir_batches", None)
    if known is None or not known.serves(router):
        Batches(router, views, manager)
    return manager


def _own(holder: Any, name: str) -> Any:
    """The method of an object that its class gives it."""
    return getattr(type(holder), name).__get__(holder)


def _require(manager: Any) -> None:
    """PackedBatchError where a manager is not as it is known."""
    try:
        from transformers.generation.continuous_batching import requests

        state, piece = requests.RequestState, requests.FutureRequestState
        lacking = [name for name in _OF_REQUESTS if name not in {*dir(state), *state.__dataclass_fields__}]
        lacking += [name for name in ("state", "query_length") if name not in dir(piece)]
    except (ImportError, AttributeError) as error:
        lacking = [str(error)]
    lacking += [name for name in _SETTINGS if not hasattr(getattr(manager, "continuous_batching_config", None), name)]
    for name in _OF_MANAGERS:
        lacking += [] if hasattr(manager, name) else [name]
    if lacking:
        import transformers

        raise PackedBatchError(
            f"continuous batching of transformers {transformers.__version__} is not as it is known (missing: "
            f"{', '.join(lacking)}), so requests cannot be followed: {WHAT_INSTEAD}"
        )
    if getattr(getattr(manager, "distributed_helper", None), "tp_size", 1) != 1:
        raise PackedBatchError(f"continuous batching on several GPUs cannot be followed: {WHAT_INSTEAD}")
    if manager.is_running():
        raise PackedBatchError(
            "a manager of continuous batching runs already: stop it before its requests can be followed"
        )
