"""`Call`: what is known of one forward pass of the decoder while it runs."""

import weakref
from contextlib import ExitStack
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch

from memoir_fast.modules.routed import Routed


@dataclass
class Call:
    """One forward pass of the decoder."""

    attention_mask: Any = None
    cache: Any = None
    state: Any = None  # a SequenceState
    length: int = 0  # positions that the cache holds already
    given: tuple[Any, ...] = ()  # its arguments
    ids: torch.Tensor | None = None  # int64 [B, S], what is embedded
    decided: bool = False  # before the edited layer is reached
    routed: Routed | None = None
    view: ExitStack | None = None  # holds on to the memory that it is decided by
    last: tuple[torch.Tensor, torch.Tensor | None] | None = None  # edits int32 [B], overlap int32 [B] (None: forced)
    pieces: Any = None  # Pieces, where it holds several sequences in a row
    reached: bool = False  # the edited layer has run
    read: Routed | None = None  # and has read there
    generation: Any = None  # the Generation that it runs in
    gradients: bool = False  # may be asked of it
    others: bool = False  # its sequences are others than that generation's

    def prompt_end(self, asked: Any) -> int | None:
        """Where the prompt ends, of what is asked for in `generate`; None: nothing says so."""
        end: int | None = asked.generate_prompt
        return None if self.others else end


@dataclass
class Passing:
    """What a compiled pass has a ticket for."""

    state: Any  # a SequenceState
    call: Call | None  # until the edited layer has run


# by weak references: a copied context may outlive what it was asked of, whose id is then another's
_calls: ContextVar[dict[weakref.ref[Any], Call] | None] = ContextVar("memoir_fast_calls", default=None)


def running(router: object) -> Call | None:
    """The pass of a router's decoder that runs in this thread or task."""
    return (_calls.get() or {}).get(weakref.ref(router))


def suspend(router: object) -> Call | None:
    """Puts that pass aside, and gives it."""
    others = dict(_calls.get() or {})
    call = others.pop(weakref.ref(router), None)
    _calls.set(others)
    return call


def resume(router: object, call: Call) -> None:
    """Begins a pass, or goes on with one that was put aside."""
    _calls.set({**(_calls.get() or {}), weakref.ref(router): call})
