"""Passes beside those of continuous batching.

While transformers runs a manager of continuous batching, it keeps in the model's configuration what kind of attention
its passes need. Any other pass of that model, in whatever thread, would go by it and answer wrongly. So `generate` and
the passes by which a memory learns take turns with the manager's, and find the model's own kind of attention.
"""

import threading
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from memoir_fast.errors import MemoirError

_STEP, _BESIDE = "a manager's", "beside"


class _Groups:
    """Any number of blocks of one group run at once, and none of the other.

    Who came first goes first; but where `beside` blocks run, further ones do not wait.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = threading.local()
        self._group, self._running = "", 0
        self._waiting: deque[tuple[str, threading.Event]] = deque()

    @contextmanager
    def block(self, group: str) -> Iterator[None]:
        """Runs when no block of the other group does; a thread's blocks inside of its own are part of that."""
        if self.inside():
            yield
            return
        self._enter(group)
        self._inside.block = group
        try:
            yield
        finally:
            if self.inside():
                self._inside.block = ""
                self._leave()

    def inside(self) -> str:
        """The group of the block that this thread is in; "" where it is in none."""
        return getattr(self._inside, "block", "")

    @contextmanager
    def left(self) -> Iterator[None]:
        """Within the block, the one of this thread is left; it then waits to be in it again."""
        group, self._inside.block = self.inside(), ""
        self._leave()
        try:
            yield
        finally:
            self._enter(group)
            self._inside.block = group

    def _enter(self, group: str) -> None:
        turn = threading.Event()
        with self._lock:
            self._waiting.append((group, turn))
            self._admit()
        try:
            turn.wait()
        except BaseException:  # Ctrl-C
            with self._lock:
                if turn.is_set():
                    self._running -= 1
                else:
                    self._waiting.remove((group, turn))
                self._admit()
            raise

    def _leave(self) -> None:
        with self._lock:
            self._running -= 1
            self._admit()

    def _admit(self) -> None:
        while self._waiting:
            groups = [group for group, _ in self._waiting]
            place = 0
            if self._running and self._group == _BESIDE:  # what runs may wait for a lock that one who waits has
                place = groups.index(_BESIDE) if _BESIDE in groups else -1
            elif self._running and groups[0] != self._group:
                place = -1
            if place < 0:
                return
            self._group, turn = self._waiting[place]
            del self._waiting[place]
            self._running += 1
            turn.set()


_groups = _Groups()
_lock = threading.Lock()
_managers: "weakref.WeakSet[Any]" = weakref.WeakSet()
_switched: list[tuple[Any, Any]] = []  # managers whose models have their own attention for now, and what they had
_blocks = 0  # of `beside`, running


def register(manager: Any) -> None:
    """Notes a manager of continuous batching, for as long as it is there."""
    with _lock:
        _managers.add(manager)


@contextmanager
def step() -> Iterator[None]:
    """Within the block, a manager runs its pass or takes its model, and no `beside` block runs."""
    with _groups.block(_STEP):
        yield


@contextmanager
def beside() -> Iterator[None]:
    """Within the block, no manager runs a pass, and passes of any thread are as where there is none.

    Example:
        >>> from memoir_fast.hf.beside import beside
        >>> with beside():
        ...     output = model(**tokenizer("The capital of France is", return_tensors="pt"))
    """
    if _groups.inside() == _BESIDE:
        yield
        return
    with _groups.block(_BESIDE):
        _take_models()
        try:
            yield
        finally:
            if _groups.inside():  # it was not left for good, by Ctrl-C
                _give_models_back()


@contextmanager
def apart() -> Iterator[None]:
    """Within the block, managers run their passes, also where it is in a `beside` block: for who waits for these."""
    if _groups.inside() != _BESIDE:
        yield
        return
    _give_models_back()
    with _groups.left():
        yield
    _take_models()


def require_apart() -> None:
    """MemoirError in a `beside` block: who makes a manager there would wait for passes which wait for him."""
    if _groups.inside() == _BESIDE:
        raise MemoirError(
            "a manager of continuous batching was asked for within a generate of this model, or within beside(): its "
            "passes would wait for the end of that. Make it outside, or call model.generate_batch"
        )


def _take_models() -> None:
    """A `beside` block begins: models have their own attention."""
    global _blocks
    with _lock:
        _blocks += 1
        if _blocks == 1:
            for manager in list(_managers):
                own = getattr(manager, "_original_attn_impl", None)  # None: it took none, or has given it back
                if own is not None:
                    _switched.append((manager, manager.model.config._attn_implementation))
                    manager.model.set_attn_implementation(own)


def _give_models_back() -> None:
    """It ends: managers have theirs again."""
    global _blocks
    with _lock:
        _blocks -= 1
        while _blocks == 0 and _switched:
            manager, kind = _switched.pop()
            if getattr(manager, "_original_attn_impl", None) is not None:  # it was not stopped meanwhile
                manager.model.set_attn_implementation(kind)
