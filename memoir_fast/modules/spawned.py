"""What is sent to a process that is being spawned: shared memory lives as long as somebody here holds it."""

from multiprocessing.context import get_spawning_popen
from typing import Any
from weakref import WeakKeyDictionary

_sent: WeakKeyDictionary[Any, list[Any]] = WeakKeyDictionary()  # by each process that was started with it


def hold(what: Any) -> None:
    """Where a process is being spawned, holds what it is sent for as long as its handle here lives."""
    child = get_spawning_popen()
    if child is not None:
        _sent.setdefault(child, []).append(what)
