"""What the router does in a pass that `torch.compile` has compiled.

While a pass is compiled, its hooks only take note of tensors. Overrides, views, routes and the state of sequences are
looked at in one operation, `route_pass`, which is called where routes are made each time that the compiled pass runs.
It calls the router as the hooks of any other pass do, so that both decide alike.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from memoir_fast.errors import MemoirError, UnsupportedModelError
from memoir_fast.hf.cache import find_cache, held, holds_tuples, kept, tie
from memoir_fast.hf.call import Passing, resume, suspend
from memoir_fast.hf.own_pass import OwnPass
from memoir_fast.hf.packed import WHAT_INSTEAD
from memoir_fast.modules import tickets
from memoir_fast.modules.base_layer import require_as_attached
from memoir_fast.modules.compiled import define, exporting, found, tracing

_EXPORTED = (
    "a model with a memory cannot be exported: its graph would hold the edits as they are now, and no sequence's route "
    "from one step to the next. Compile it, by torch.compile(model, fullgraph=True), or export the model that "
    "memoir.detach() gives back, which has no edits"
)


class Tracing:
    """The hooks of a router: those of the pass that runs, or, where `torch.compile` looks, what it takes note of.

    Args:
        router (Router): whose hooks they are.
        layer (MemoirLinear): the edited layer, by whose number operations find both.
    """

    def __init__(self, router: Any, layer: Any) -> None:
        self._router, self._layer = router, layer
        # of the pass that is being compiled; None, as before, when it has been
        self._given: dict[str, Any] | None = None
        self._cache: Any = None
        self._followed: torch.Tensor | None = None
        self._length = 0
        self._ids: torch.Tensor | None = None
        self._ticket: torch.Tensor | None = None

    def before(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The decoder is called."""
        if exporting():
            raise MemoirError(_EXPORTED)
        if not tracing():
            require_as_attached(self._layer)
            self._router.before(args, kwargs)
            return
        self._given = self._router.named(args, kwargs)
        self._cache = find_cache((args, kwargs))
        self._followed = getattr(self._cache, "memoir_ticket", None)
        self._length = held(self._cache) if self._followed is None else 0  # now: blocks before the site fill the cache

    def embed(self, ids: torch.Tensor) -> torch.Tensor | None:
        """Token ids int64 [B, S] are embedded: these, or what is given back."""
        if not tracing():
            self._router.embed(ids)
            return None
        if self._given is None:
            return _told(ids, self._layer.number)
        self._ids = ids
        return None

    def enter(self, hidden: torch.Tensor) -> torch.Tensor | None:
        """Hidden states [B, S, H] enter the routing site's block: these, or what is given back."""
        if not tracing():
            self._router.enter(hidden)
            return None
        if self._given is None:
            return _told(hidden, self._layer.number)
        self._ticket = self._route(hidden)
        return None

    def ticket(self, x: torch.Tensor) -> torch.Tensor | None:
        """What the pass that is compiled goes by at the edited layer, whose inputs are x; None: by the running one."""
        if self._given is None:
            return None
        if self._router.site is None:
            self._ticket = self._route(x)
        return self._ticket

    def after(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """The decoder gives its output."""
        if not tracing():
            self._router.after(output)
            return
        cache = self._cache if self._cache is not None else find_cache(output)
        if cache is not None and self._ticket is not None and self._followed is None:
            tie(cache, self._ticket)
        self._forget()

    @contextmanager
    def resumed(self, ticket: torch.Tensor) -> Iterator[None]:
        """Within the block, the pass that a ticket was issued for goes on, and ends with it."""
        passing = tickets.redeem(ticket)
        call, passing.call = passing.call, None
        if call is None:
            raise MemoirError("the edited layer ran twice in a compiled pass: compile the model without checkpointing")
        resume(self._router, call)
        try:
            yield
        finally:
            suspend(self._router)
            if call.view is not None:
                call.view.close()

    def _forget(self) -> None:
        self._given = self._cache = self._followed = self._ids = self._ticket = None
        self._length = 0

    def _route(self, hidden: torch.Tensor) -> torch.Tensor:
        """A ticket for the pass, whose hidden states at the place where routes are made are these."""
        names: list[str] = []
        tensors: list[torch.Tensor] = []
        for name, value in (self._given or {}).items():
            parts = value.items() if isinstance(value, dict) else [("", value)]
            for part, one in parts:
                if isinstance(one, torch.Tensor):
                    names.append(f"{name}/{part}")
                    tensors.append(one.detach())
        ticket: torch.Tensor = _route_pass(
            hidden.detach(),
            self._ids,
            self._followed,
            self._length,
            self._cache is not None,
            (self._given or {}).get("use_cache"),
            names,
            tensors,
            _unknown(self._given or {}, self._cache),
            self._layer.number,
        )
        return ticket


class _Stand:
    """Stands for the cache of a compiled pass."""

    def __init__(self, state: Any, length: int) -> None:
        self.memoir_state, self._length = state, length

    def get_seq_length(self) -> int:
        """Positions that it holds."""
        return self._length

    def update(self) -> None:
        """By which it is known as a cache; nothing is put into it."""


def _run(
    hidden: torch.Tensor,
    ids: torch.Tensor | None,
    followed: torch.Tensor | None,
    length: int,
    cached: bool,
    caching: bool | None,
    names: list[str],
    tensors: list[torch.Tensor],
    unknown: str,
    number: int,
) -> torch.Tensor:
    router = _router(number)
    state = None if followed is None else kept(followed)
    given: dict[str, Any] = {"use_cache": caching}
    for name, tensor in zip(names, tensors, strict=True):
        argument, _, part = name.partition("/")
        if part:
            given.setdefault(argument, {})[part] = tensor
        else:
            given[argument] = tensor
    if unknown and not router.disabled:
        raise UnsupportedModelError(f"a compiled pass cannot be followed: {unknown}")
    if cached:
        given["cache"] = _Stand(state, length if state is None else state.length)
    router.before((), given)
    try:
        call = suspend(router)
        assert call is not None
        if followed is not None and call.state is None:
            raise MemoirError("the cache was filled under a memory that is gone: begin with an empty cache")
        call.ids = ids
        resume(router, call)
        router.enter(router.in_rows(hidden) if hidden.dim() == 2 else hidden.reshape(len(hidden), -1, hidden.shape[-1]))
        if cached and call.generation is not None and call.state is not None:
            call.generation.begin(call.state)
    finally:
        suspend(router)
    return tickets.issue(Passing(call.state, call))


def _router(number: int) -> Any:
    if OwnPass.current() is not None:
        raise MemoirError("a pass by which an edit is learned or hashed reached a compiled part of the model")
    return found(number).router


def _tell(value: torch.Tensor, number: int) -> torch.Tensor:
    """Where parts of a model are compiled, and its decoder is not: tells the router of token ids, or hidden states.

    What is given back goes on in their place, so that nothing behind it is computed before.
    """
    router = _router(number)
    if value.is_floating_point():
        router.enter(value)
    else:
        router.embed(value)
    return value.clone()


def _unknown(given: dict[str, Any], cache: Any) -> str:
    """What shows, in arguments that no operation can be given, that rows cannot be followed; "": nothing."""
    if cache is None and holds_tuples(given.values()):
        return (
            "keys and values came as tuples of tensors; give the model a cache object, e.g. transformers.DynamicCache"
        )
    for name, value in given.items():
        if value is None:
            continue
        kind = type(value)
        if hasattr(kind, "update") and not hasattr(kind, "get_seq_length") and not isinstance(value, dict):
            return f"{name} is a {kind.__name__}, whose blocks belong to many sequences; {WHAT_INSTEAD}"
        if name == "attention_mask" and not isinstance(value, (torch.Tensor, dict)):
            return f"attention_mask is a {kind.__name__}, in which padding cannot be told; give one as a tensor"
    return ""


_route_pass = define(
    "route_pass",
    "(Tensor hidden, Tensor? ids, Tensor? followed, SymInt length, bool cached, bool? caching, str[] names, "
    "Tensor[] tensors, str unknown, int layer) -> Tensor",
    _run,
    lambda *_: torch.empty(1, dtype=torch.int64, device="cpu"),
)
_told = define("tell_router", "(Tensor value, int layer) -> Tensor", _tell, lambda value, _: torch.empty_like(value))
torch.library.register_autograd("memoir_fast::tell_router", lambda _, grad: (grad, None))
