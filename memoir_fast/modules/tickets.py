"""Tickets: tensors that stand for Python objects in a pass that `torch.compile` has compiled.

A compiled pass carries tensors alone, and what it looks at otherwise it is compiled anew for. So it is handed a ticket,
an int64 [1] on the CPU, always of the same kind, and gives it to an operation that redeems it.
"""

import itertools
import threading
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch.multiprocessing.reductions import StorageWeakRef

_LOOKED_AT = 4  # deposits that each issue looks at, the oldest: as many go as come, and most go soon
_numbers = itertools.count(1)
_lock = threading.Lock()
_deposited: dict[int, tuple[StorageWeakRef, Any]] = {}
_enrolled: WeakValueDictionary[int, Any] = WeakValueDictionary()


def issue(value: Any) -> torch.Tensor:
    """A ticket for `value`, which is kept until the ticket is gone, and a little longer.

    Example:
        >>> from memoir_fast.modules import tickets
        >>> ticket = tickets.issue("a coat")
        >>> tickets.redeem(ticket), tickets.redeem(ticket)
        ('a coat', 'a coat')
    """
    number = next(_numbers)
    with torch.inference_mode(False):  # of one kind in whatever mode: other kinds would be compiled for anew
        ticket = torch.tensor([number], device="cpu")
    with _lock:
        for oldest in list(itertools.islice(_deposited, _LOOKED_AT)):
            storage, kept = _deposited.pop(oldest)
            if not storage.expired():
                _deposited[oldest] = storage, kept
        _deposited[number] = StorageWeakRef(ticket.untyped_storage()), value
    return ticket


def redeem(ticket: torch.Tensor) -> Any:
    """What a ticket stands for; None where nothing is kept for it."""
    with _lock:  # an issue may be moving it at this moment
        return _deposited.get(int(ticket), (None, None))[1]


def enrol(value: Any) -> int:
    """A number by which operations find `value`, for as long as it lives."""
    number = next(_numbers)
    _enrolled[number] = value
    return number


class Enrolled:
    """A module with a number of its own by which operations find it; so has a copy of it."""

    number: int

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[misc]
        self.number = enrol(self)


def enrolled(number: int) -> Any:
    """What has that number; None where it is gone."""
    return _enrolled.get(number)
