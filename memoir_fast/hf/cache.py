"""Finds the cache of keys and values in a call, by what it is and not by its name, and lets a state follow it."""

import functools
import weakref
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import nn

from memoir_fast.hf.call import Passing
from memoir_fast.modules import tickets

_DEPTH = 3  # a cache in a tuple that is an argument is found


class FollowingState(Protocol):
    """What is kept on a cache and moves with its rows and positions."""

    def select(self, rows: torch.Tensor) -> None:
        """Keeps `rows`, in that order."""

    def repeat(self, times: int) -> None:
        """Repeats each row."""

    def crop(self, removed: int) -> None:
        """Forgets the last `removed` positions."""


def is_cache(value: Any) -> bool:
    """True for an object that holds keys and values as transformers' `Cache` does: `update` and `get_seq_length`."""
    kind = type(value)
    return callable(getattr(kind, "get_seq_length", None)) and callable(getattr(kind, "update", None))


def find_cache(values: Any) -> Any:
    """The first cache among `values`, which may be a mapping, a sequence or an output object; None: there is none."""
    return _search(values, _DEPTH)


def holds_tuples(values: Iterable[Any]) -> bool:
    """Whether keys and values lie among `values` as tuples of tensors [B, heads, S, width], one tuple per layer."""
    return any(isinstance(one, (tuple, list)) and len(one) > 0 and _is_pair(one[0]) for one in values)


def counted(cache: Any) -> Any:
    """Positions in a cache as it counts them: an int, a tensor, or None where it holds no keys to be counted."""
    try:
        return cache.get_seq_length()
    except ValueError:  # the cache of a model without attention
        return None


def held(cache: Any) -> int:
    """Positions in a cache that was filled before the model had a memory; those tokens cannot be hashed any more."""
    length = counted(cache) if cache is not None else 0
    if isinstance(length, torch.Tensor) and length.device.type == "cpu" and not torch.compiler.is_compiling():
        return int(length)
    return length if isinstance(length, int) else 0  # a static cache counts on the device, where reading would wait


def remembered(cache: Any) -> Any:
    """The state tied to a cache, or None."""
    state = getattr(cache, "memoir_state", None)
    ticket = getattr(cache, "memoir_ticket", None)
    return state if state is not None or ticket is None else kept(ticket)


def kept(ticket: torch.Tensor) -> Any:
    """The state that a cache's ticket stands for."""
    found = tickets.redeem(ticket)
    return found.state if isinstance(found, Passing) else found and found()


def remember(cache: Any, state: FollowingState) -> None:
    """Ties `state` to a cache: its class becomes one that reorders, repeats, crops and resets the state with itself."""
    _follow(cache)
    if cache.memoir_state is not state:
        cache.memoir_state, cache.memoir_ticket = state, tickets.issue(weakref.ref(state))


def tie(cache: Any, ticket: torch.Tensor) -> None:
    """As `remember`, in a pass that is being compiled, for the state that the ticket stands for.

    Compiled code cannot change an object's class. What does it stands in place of its methods until one is called.
    """
    cache.memoir_ticket = ticket
    if not isinstance(cache, _Following):
        for name in _MOVES:
            if hasattr(cache, name):
                setattr(cache, name, functools.partial(_moved, weakref.ref(cache), name))


def _moved(cache: Any, name: str, *args: Any, **kwargs: Any) -> Any:
    """Calls a method of a cache, given by a weak reference, once its class is one that moves the state."""
    one = cache()
    _follow(one)
    return getattr(one, name)(*args, **kwargs)


def _follow(cache: Any) -> None:
    if not isinstance(cache, _Following):
        state = remembered(cache)
        for name in _MOVES:
            cache.__dict__.pop(name, None)
        cache.__class__ = _following(type(cache))  # type: ignore[arg-type]
        cache.memoir_state = state
    elif cache.memoir_state is None:
        cache.memoir_state = remembered(cache)


def _is_pair(value: Any) -> bool:
    tensors = value if isinstance(value, (tuple, list)) else ()
    return len(tensors) > 1 and all(isinstance(one, torch.Tensor) and one.dim() == 4 for one in tensors[:2])


def _search(value: Any, depth: int) -> Any:
    if isinstance(value, (torch.Tensor, nn.Module, str, bytes, int, float)) or value is None:
        return None
    kind = type(value)
    plain = kind is tuple or kind is dict  # every pass has these, and is looked at in every decode step
    if not plain and is_cache(value):
        return value
    if depth == 0:
        return None
    inner: Iterable[Any]
    if kind is dict or not plain and isinstance(value, Mapping):
        inner = value.values()
    elif plain or isinstance(value, (list, tuple)):
        inner = value
    else:  # an output of its own kind; what lies in other objects is their own affair
        inner = getattr(value, "__dict__", {}).values() if depth == _DEPTH else ()
    for one in inner:
        found = _search(one, depth - 1)
        if found is not None:
            return found
    return None


_MOVES = ("reorder_cache", "batch_select_indices", "batch_repeat_interleave", "crop", "reset", "__reduce_ex__")


class _Following:
    """Methods of transformers' caches, each of which also moves the state."""

    memoir_state: FollowingState | None = None
    memoir_ticket: torch.Tensor | None = None  # what compiled passes know the state by

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        self._each("select", beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)  # type: ignore[misc]
        self._each("select", indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        self._each("repeat", repeats)

    def crop(self, *args: Any, **kwargs: Any) -> None:
        before = int(self.get_seq_length())  # type: ignore[attr-defined]
        super().crop(*args, **kwargs)  # type: ignore[misc]
        left = int(self.get_seq_length())  # type: ignore[attr-defined]
        if left:
            self._each("crop", before - left)
        else:  # what comes is another sequence
            self.memoir_state = self.memoir_ticket = None

    def reset(self) -> None:
        super().reset()  # type: ignore[misc]
        self.memoir_state = self.memoir_ticket = None

    def _each(self, move: str, by: Any) -> None:
        _follow(self)
        if self.memoir_state is not None:
            getattr(self.memoir_state, move)(by)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.memoir_state is not None:
            self.memoir_ticket = tickets.issue(weakref.ref(self.memoir_state))

    def __reduce_ex__(self, _: Any) -> tuple[Any, ...]:
        _follow(self)
        plan: tuple[Any, ...] = super().__reduce_ex__(2)  # type: ignore[assignment]
        return _remade, (type(self).__bases__[1], *plan[1][1:]), *plan[2:]


@functools.cache
def _following(kind: type) -> type:
    """A subclass of a cache class that takes the state along; it goes by the same name."""
    return type(kind.__name__, (_Following, kind), {"__module__": kind.__module__, "__qualname__": kind.__qualname__})


def _remade(kind: type, *args: Any) -> Any:
    """An empty cache of that class which takes the state along: what copies and unpickled caches start from."""
    following = _following(kind)
    return following.__new__(following, *args)
