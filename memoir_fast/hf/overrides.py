"""What blocks of code ask of a router, in a thread or task."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import torch

from memoir_fast.hf import banks
from memoir_fast.modules.banks import Asked


class Generation:
    """One call of `model.generate`, whose sequences are those of the cache that its first pass fills.

    Other passes of the model may run within it: those of a negative prompt (`guidance_scale`), or of a processor of
    logits. How long the generation's prompt is says nothing of theirs.
    """

    def __init__(self, proposing: bool = False) -> None:
        self.proposing = proposing
        """Whether what it says is only proposed to another, which says itself what is right."""
        self._state: Any = None
        self.decided: Any = None
        """What was decided last for its own sequences; None: nothing yet."""

    def begin(self, state: Any) -> None:
        """Notes the state of a pass's sequences, which a cache keeps: the first one's is its own."""
        if self._state is None:
            self._state = weakref.ref(state)

    def others(self, state: Any) -> bool:
        """Whether a pass whose cache keeps this state (None: none yet) is one of other sequences."""
        own = self._state and self._state()
        return own is not None and own is not state


@dataclass(frozen=True)
class Overrides:
    """What is asked of a router for the sequences of a pass."""

    disabled: bool = False
    forced: tuple[int, ...] | None = None
    lengths: tuple[int, ...] | None = None
    generate_prompt: int | None = None
    """Positions that are prompt, in `model.generate`."""
    generation: Generation | None = None
    """Whose they are."""
    asked_banks: Asked | tuple[Asked, ...] | None = None

    def of_row(self, row: int, batch: int) -> "Overrides":
        """What is asked for one of B sequences.

        Raises:
            ValueError: a list is not as long as the batch.

        Example:
            >>> from memoir_fast.hf.overrides import Overrides
            >>> Overrides(forced=(3, -1)).of_row(1, 2).forced
            (-1,)
        """
        forced, lengths = self.forced, self.lengths
        if forced is not None:
            forced = (int(per_row(forced, batch, "routed")[row]),)
        if lengths is not None:
            lengths = (int(per_row(lengths, batch, "prompts")[row]),)
        asked = banks.per_row(self.asked_banks, batch, False)
        return replace(self, forced=forced, lengths=lengths, asked_banks=None if asked is None else asked[row])


_NONE = Overrides()
# by weak references: a copied context may outlive what it was asked of, whose id is then another's
_in_force: ContextVar[dict[weakref.ref[Any], Overrides] | None] = ContextVar("memoir_fast_overrides", default=None)


def asked_of(router: object) -> Overrides:
    """What is in force for a router, in this thread or task."""
    return (_in_force.get() or {}).get(weakref.ref(router), _NONE)


@contextmanager
def overriding(router: object, **changes: Any) -> Iterator[None]:
    """Within the block, what is given is asked of the router, in this thread or task."""
    token = _in_force.set({**(_in_force.get() or {}), weakref.ref(router): replace(asked_of(router), **changes)})
    try:
        yield
    finally:
        _in_force.reset(token)


def per_row(values: tuple[int, ...], batch: int, what: str) -> torch.Tensor:
    """One value for all rows, or one for each of B, as a tensor [B]; ValueError where they are of another number."""
    if len(values) not in (1, batch):
        raise ValueError(f"{what}(...) was given {len(values)} values for a batch of {batch} sequences")
    return torch.tensor(values).expand(batch)
