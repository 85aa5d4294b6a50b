"""`Turns`: how threads share one memory, which many read and one at a time changes."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from memoir_fast.errors import MemoirError


class Turns:
    """Any number of threads read a memory at once. A change waits until none does, and is whole before the next reads.

    A change waits for one layer's forward pass at most, and no new reader goes before it. What has to be worked out
    first is worked out in a `learning` block: by one thread at a time, while others read. All three may be nested.
    A copy starts with nobody in it.

    Example:
        >>> from memoir_fast.modules.turns import Turns
        >>> turns = Turns()
        >>> with turns.learning():
        ...     with turns.reading():
        ...         pass  # so do others
        ...     with turns.changing():
        ...         pass  # nobody reads
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left = threading.Condition(self._lock)
        self._readers: list[int] = []  # the thread of each
        self._writer: int | None = None  # the thread that changes, or waits to
        self._learner = threading.RLock()

    def enter(self) -> None:
        """Begins to read. `leave` must follow, also where this is interrupted."""
        thread = threading.get_ident()
        with self._lock:
            while self._writer not in (None, thread) and thread not in self._readers:
                self._left.wait()
            self._readers.append(thread)

    def leave(self) -> None:
        """Ends what `enter` began."""
        thread = threading.get_ident()
        with self._lock:
            if thread in self._readers:
                self._readers.remove(thread)
            if self._writer is not None:
                self._left.notify_all()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Within the block, nobody changes the memory."""
        try:
            self.enter()
            yield
        finally:
            self.leave()

    @contextmanager
    def learning(self) -> Iterator[None]:
        """Within the block, only this thread works on changes of the memory."""
        with self._learner:
            yield

    @contextmanager
    def changing(self) -> Iterator[bool]:
        """Within the block, nobody else reads or changes the memory. Yields False where another such block holds it.

        Raises:
            MemoirError: this thread is reading, in a forward pass of the layer, and would wait for itself.
        """
        thread = threading.get_ident()
        if self._writer == thread:
            yield False
            return
        if thread in self._readers:
            raise MemoirError("a memory cannot be changed from within a forward pass of its own layer; do so after it")
        with self._learner:
            try:
                with self._lock:
                    self._writer = thread
                    while self._readers:
                        self._left.wait()
                yield True
            finally:
                with self._lock:
                    self._writer = None
                    self._left.notify_all()

    def __reduce__(self) -> tuple[Any, ...]:
        return Turns, ()
