"""`Replaceable`: a layer whose output is another one for some passes, while an edit is learned."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

Output = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Of a layer's input x and what its base layer makes of it, y."""

# by weak references: a copied context may outlive what it was asked of, whose id is then another's
_outputs: ContextVar[dict[weakref.ref[Any], Output] | None] = ContextVar("memoir_fast_outputs", default=None)


class Replaceable:
    """A module whose output other code may give, in its own thread or task; a copy has nobody who does."""

    def __init__(self) -> None:
        super().__init__()
        self._replaced: list[Output] = []  # of all threads; as long as there are none, a pass looks for none

    @contextmanager
    def replacing_output(self, output: Output) -> Iterator[None]:
        """While an edit is learned: the layer gives `output(x, y)` for its input x and the base layer's output y.

        In this thread or task alone.
        """
        self._replaced.append(output)
        token = _outputs.set({**(_outputs.get() or {}), weakref.ref(self): output})
        try:
            yield
        finally:
            _outputs.reset(token)
            self._replaced.remove(output)

    @property
    def replacement(self) -> Output | None:
        """What gives its output in this thread or task, while an edit is learned."""
        return (_outputs.get() or {}).get(weakref.ref(self)) if self._replaced else None

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()  # type: ignore[assignment]
        return {**state, "_replaced": []}
