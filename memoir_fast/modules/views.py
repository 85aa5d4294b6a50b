"""`Views`: a generation sees one memory, from its first token to its last."""

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from memoir_fast.modules.code_store import CodeStore
from memoir_fast.modules.mask_store import MaskStore
from memoir_fast.modules.residual_memory import ResidualMemory

Module = TypeVar("Module", bound=nn.Module)


class View(NamedTuple):
    """What a forward pass reads of a memory."""

    store: MaskStore
    memory: ResidualMemory
    codes: CodeStore | None = None
    held: list[Any] | None = None
    """What keeps the pages that only this view reads from being used again."""


class Generation:
    """One that is under way; `view` is None as long as the memory is as it was when it began."""

    view: View | None = None


# by weak references: a copied context may outlive what it was asked of, whose id is then another's
_Generations = dict["weakref.ref[Views]", Generation | None]
_current: ContextVar[_Generations | None] = ContextVar("memoir_fast_generations", default=None)


class Views:
    """The generations under way on one layer, and what they still see of memories that have changed since.

    Nothing is copied before a change, and then only what it changes and some generation sees: a page of W_m at most
    once per generation under way, the store only where one of its rows changes or goes. Copies are dropped with the
    last generation that sees them.
    """

    def __init__(self) -> None:
        # A generation may end, between two of its passes, while a change is under way. A thread may come here twice,
        # where the collector of garbage ends a generation that was left.
        self._lock = threading.RLock()
        self._running: list[Generation] = []
        self.outdated: list[Generation] = []
        """The generations that began before the latest change. As long as it is empty, there is nothing to look up."""

    @contextmanager
    def generation(self) -> Iterator[None]:
        """Within the block, forward passes of this thread or task see the memory as it is now."""
        own = self.begin()
        try:
            with self.seen_by(own):
                yield
        finally:
            self.end(own)

    def begin(self) -> Generation:
        """A generation that sees the memory as it is now, in `seen_by` blocks, until its `end`."""
        own = Generation()
        with self._lock:
            self._running.append(own)
        return own

    def end(self, own: Generation) -> None:
        """What `begin` gave sees the memory as it is at each moment from now on."""
        with self._lock:
            self._running.remove(own)
            if own in self.outdated:
                self.outdated.remove(own)
            own.view = None  # a context that was copied from this one may go on

    @contextmanager
    def latest(self) -> Iterator[None]:
        """Within the block, also inside of a generation, forward passes see the memory as it is at each of them."""
        with self.seen_by(None):
            yield

    @contextmanager
    def seen_by(self, generation: Generation | None) -> Iterator[None]:
        """Within the block, forward passes of this thread or task are of that generation; None: of none."""
        token = _current.set({**(_current.get() or {}), weakref.ref(self): generation})
        try:
            yield
        finally:
            _current.reset(token)

    @property
    def generating(self) -> bool:
        """Whether this thread or task is inside of a `generation` block, of which no `latest` block is inside."""
        return (_current.get() or {}).get(weakref.ref(self)) is not None

    @property
    def current(self) -> View | None:
        """What the generation of this thread or task sees; None: the memory as it is."""
        own = (_current.get() or {}).get(weakref.ref(self))
        return None if own is None else own.view

    def keep(self, now: View, *, page: int | None, rows: bool) -> None:
        """Makes generations under way go on with the memory `now`, which is about to change; nobody may be reading.

        Args:
            now (View): the live store and memory.
            page (int, optional): the page of W_m that will change.
            rows (bool): rows of the store that are in use will change; rows may be added in any case.
        """
        with self._lock:
            running = self._running
            new = [one for one in running if one.view is None]
            if new:
                codes = _twin(now.codes) if now.codes is not None else None
                view = View(_twin(now.store), _twin(now.memory), codes, [])
                for kept, live in ((view.store, now.store), (view.codes, now.codes)):
                    if kept is not None and live is not None:
                        kept.count, kept.min_overlap = live.count.clone(), live.min_overlap.clone()
                view.store._dead = now.store._dead.clone()
                for one in new:
                    one.view = view
                self.outdated += new
            views = [one.view for one in running if one.view is not None]
            if page is not None:
                _part_page(now, page, views)
            if rows:
                _part(now.store, [view.store for view in views])
                if now.codes is not None:
                    _part(now.codes, [view.codes for view in views])

    def __reduce__(self) -> tuple[Any, ...]:
        return Views, ()


def _twin(module: Module) -> Module:
    """Another module with the same buffers, of which each can be exchanged without changing the first module."""
    twin = object.__new__(type(module))
    twin.__dict__.update(module.__dict__, _buffers=dict(module._buffers))
    return twin


class _Held:
    """Something that goes when the last view that has it goes."""


def _part_page(now: View, page: int, views: list[View]) -> None:
    """Gives the views that see a page a copy of it, one for all of them, and takes it back when they are gone."""
    same = [view for view in views if view.memory.table is now.memory.table]
    sharing = list({id(view): view for view in same if view.store.written(page)}.values())
    if not sharing:
        return
    copied = now.memory.copy_page(page)
    if copied is None:
        separate = now.memory.weight.clone()
        for view in sharing:
            view.memory.table = separate
        return
    held = _Held()
    weakref.finalize(held, now.memory.close, copied).atexit = False
    for view in sharing:
        view.store.move(page, copied)
        assert view.held is not None
        view.held.append(held)


def _part(live: nn.Module, others: list[Any]) -> None:
    """Gives the modules in `others` that share memory with `live` copies of it, one copy for all of them.

    They may be shorter: a table that has grown lies where it lay.
    """
    for name, buffer in live._buffers.items():
        if buffer is None:
            continue
        places = [(other._buffers, other._buffers.get(name)) for other in others]
        sharing = [(place, own) for place, own in places if own is not None and own.data_ptr() == buffer.data_ptr()]
        if sharing:
            separate = max((own for _, own in sharing), key=torch.numel).clone()
            for place, own in sharing:
                place[name] = separate if own.shape == separate.shape else separate[: len(own)]
