"""What passes with gradients read of a memory, for blocks that gradient checkpointing runs again in the backward pass.

Such a block is called by itself, when its pass has ended long ago, and perhaps others have followed. It is told by what
it is given: the same numbers, to the last bits, as in one of these passes.
"""

from collections import deque
from dataclasses import dataclass
from typing import Any

import torch

from memoir_fast.errors import MemoirError
from memoir_fast.modules.routed import Routed

_KEPT = 256  # layers' passes, each with a small part of its inputs
_TOKENS, _WIDTH = 8, 64  # about as many of a row's numbers are compared
_CLOSE = 1e-3  # of the largest: products that are made again may differ in their last bits


def in_backward() -> bool:
    """Whether this thread runs a backward pass.

    Raises:
        MemoirError: this release of torch does not tell, and it may be: blocks are run again with gradients enabled.
    """
    task = getattr(torch._C, "_current_graph_task_id", None)
    if task is not None:
        return bool(task() != -1)
    if torch.is_grad_enabled():
        raise MemoirError(
            f"the edited layer was called outside of a forward pass of its model, and torch {torch.__version__} does "
            "not tell whether a backward pass runs it again: train without gradient checkpointing, or under no_grad "
            "call the whole model"
        )
    return False


def run_again_later(gradients: bool) -> bool:
    """Whether the block that runs may be run again: it keeps nothing of what it computes for the gradients asked of it.

    Reentrant checkpoints compute without gradients what the pass that they are in has `gradients` of, others let hooks
    drop the tensors that autograd would save. Where these cannot be looked for, it may be.
    """
    if not gradients or not torch.is_grad_enabled():
        return gradients
    hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return hooks is None or hooks(True) is not None


@dataclass(eq=False)
class _Read:
    shape: torch.Size
    sample: torch.Tensor
    routed: Routed | None
    written: tuple[int, int]
    replayed: bool = False


class Replays:
    """The latest passes, of all threads: a device's backward passes run in a thread of their own."""

    def __init__(self) -> None:
        self._reads: deque[_Read] = deque(maxlen=_KEPT)

    @torch.no_grad()
    def note(self, x: torch.Tensor, routed: Routed | None, written: tuple[int, int]) -> None:
        """A layer with inputs x [B, S, D] reads `routed`, of a memory that was `written` so often."""
        self._reads.append(_Read(x.shape, _sample(x), routed, written))

    @torch.no_grad()
    def read(self, x: torch.Tensor, written: tuple[int, int]) -> Routed | None:
        """What the pass read in which a layer had these inputs; None: nothing.

        Raises:
            MemoirError: there is none, or several of which one read something else, or the memory was changed since.
        """
        sample = _sample(x)
        alike = [one for one in list(self._reads)[::-1] if one.shape == x.shape and one.sample.dtype == sample.dtype]
        distances = [(one.sample.to(x.device) - sample).abs().amax() for one in alike]
        apart = torch.stack(distances).tolist() if distances else []
        least = min(apart, default=float("inf"))
        if least > _CLOSE * float(sample.abs().amax()):
            raise MemoirError(
                "a block was run again in a backward pass, and its forward pass is not known: run the backward pass of "
                f"each forward pass soon, before {_KEPT} others, or train without gradient checkpointing"
            )
        found = [one for one, distance in zip(alike, apart, strict=True) if distance == least]
        current = [one for one in found if one.written == written]
        if not current:
            raise MemoirError(
                "the memory was changed between a pass and its backward pass, in which gradient checkpointing runs "
                "it again: run both again"
            )
        waiting = [one for one in current if not one.replayed] or current
        if not all(_same(one.routed, waiting[0].routed) for one in waiting):
            raise MemoirError(
                "gradient checkpointing runs a pass again in the backward pass, and two passes over the same inputs "
                "read the memory differently: run the backward pass of the first before the second, or train without it"
            )
        waiting[0].replayed = True
        return waiting[0].routed

    def __getstate__(self) -> dict[str, Any]:
        return {"_reads": deque(maxlen=_KEPT)}  # a copy has run no passes


def _sample(x: torch.Tensor) -> torch.Tensor:
    """Some of the numbers of x [B, S, D]."""
    tokens, width = max(1, x.shape[1] // _TOKENS), max(1, x.shape[2] // _WIDTH)
    return x.detach()[:, ::tokens, ::width].clone()


def _same(one: Routed | None, other: Routed | None) -> bool:
    if one is None or other is None:
        return one is other
    pairs = zip(one[:3], other[:3], strict=True)
    return one.memory is other.memory and all(
        left is right or left is not None and right is not None and torch.equal(left, right) for left, right in pairs
    )
