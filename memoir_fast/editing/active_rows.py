"""Adam on the active rows: the k rows of W_m that an edit owns are moved themselves.

Adam scales every number by its own gradients' size, so it leaves the span of the inputs and has no dual form; what it
spreads over all of an edit's columns is what paraphrases gain from.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.optim.adam import adam

from memoir_fast.editing.batch import Batch
from memoir_fast.editing.context import Learned
from memoir_fast.editing.interference import Interference
from memoir_fast.recipe import Recipe

_BETAS = (0.9, 0.999)
_EPSILON = 1e-8


class ActiveRows:
    """The rows of W_m that a batch of edits owns; edits that share rows see each other's changes at every step.

    A row has the outputs of all layers that the memory is added to, which are one problem.

    Memory: O * (3 * k * E + U) numbers, U <= min(D, k * E) the rows that any of the E edits owns, and k^2 * E to damp.
    """

    def __init__(
        self, batch: Batch, memory: torch.Tensor, recipe: Recipe, interference: Sequence[Interference]
    ) -> None:
        self._batch, self._recipe = batch, recipe
        self.steps = [0] * len(batch.a)
        union, place = torch.unique(batch.columns.long(), return_inverse=True)  # place [E, k]: rows of `_rows`
        self._place = place if len(place) > 1 else None  # one edit owns all rows, in the order of its columns
        self._rows = memory[union].to(batch.tokens.dtype)  # [U, O]
        size = (len(batch.a), place.shape[1], memory.shape[1])
        self._change, self._mean, self._square = (batch.tokens.new_zeros(size) for _ in range(3))
        self._adam = _fused_adam if batch.tokens.is_cuda else _plain_adam

        self._outputs = batch.outputs  # of each layer
        self._rate = recipe.learning_rate / len(batch.outputs)  # together they move the output as one layer would
        dtype = _damping_dtype(batch.tokens)
        dampings = ([one.damping(columns, recipe.damping) for one in interference] for columns in batch.columns)
        self._damping = [[None if one is None else one.to(dtype) for one in every] for every in dampings]

    def residual(self, edits: Sequence[int]) -> torch.Tensor:
        """What the memory would add to the edited layer's output at these edits' tokens, [tokens, O]."""
        first = self._outputs[0]
        if self._place is None:
            return self._batch.a[0] @ self._rows[:, first]
        return torch.cat([self._batch.a[edit] @ self._rows[self._place[edit]][:, first] for edit in edits])

    def further(self, edits: Sequence[int]) -> list[list[torch.Tensor]]:
        """Of each further layer, the rows [k, its outputs] that each of these edits reads there."""
        whole = [self._rows if self._place is None else self._rows[self._place[edit]] for edit in edits]
        return [[rows[:, own] for rows in whole] for own in self._outputs[1:]]

    def step(self, edit: int, gradient: torch.Tensor, further: Sequence[torch.Tensor] = ()) -> None:
        """One step of `edit` against its loss's gradient to the edited layer's outputs, [its tokens, O].

        `further`: its gradient to the rows of each further layer, [k, its outputs].
        """
        self.steps[edit] += 1
        slope = self._batch.a[edit].mT @ gradient
        if further:
            slope = torch.cat([slope, *further], dim=1)
        if self._recipe.clip is not None:
            slope *= (self._recipe.clip / (slope.norm() + 1e-6)).clamp(max=1.0)
        move = self._adam(slope, self._mean[edit], self._square[edit], self.steps[edit], self._rate)
        damped = zip(self._damping[edit], self._outputs, strict=True)
        parts = [move[:, own] if one is None else one @ move[:, own].to(one.dtype) for one, own in damped]
        move = parts[0] if len(parts) == 1 else torch.cat([part.to(self._change.dtype) for part in parts], dim=1)
        self._change[edit].add_(move)  # `+=` would copy all of it onto itself
        if self._place is None:
            self._rows += move
        else:
            self._rows.index_add_(0, self._place[edit], move.to(self._rows.dtype))

    def learned(self, edit: int, loss: float) -> Learned:
        """The outcome of one edit."""
        batch = self._batch
        return ActiveRowsLearned(
            batch.edits[edit],
            batch.masks[edit],
            batch.columns[edit],
            self.steps[edit],
            loss,
            self._change[edit],
            batch.a[edit][: batch.plain[edit]],
        )


def _plain_adam(
    slope: torch.Tensor, mean: torch.Tensor, square: torch.Tensor, step: int, learning_rate: float
) -> torch.Tensor:
    """The move that Adam makes at its step number `step`, from 1 on; takes the slope into both moments."""
    mean.lerp_(slope, 1 - _BETAS[0])
    square.lerp_(slope * slope, 1 - _BETAS[1])
    unbiased = mean / (1 - _BETAS[0] ** step)
    spread = (square / (1 - _BETAS[1] ** step)).sqrt_()
    return unbiased.div_(spread.add_(_EPSILON)).mul_(-learning_rate)


def _fused_adam(
    slope: torch.Tensor, mean: torch.Tensor, square: torch.Tensor, step: int, learning_rate: float
) -> torch.Tensor:
    """The same by torch's own fused kernel, in one pass over the four instead of eight: a step of zeros is the move."""
    move = torch.zeros_like(slope)
    # A number that is sent to the device would be waited for.
    steps = [torch.full((), step - 1.0, dtype=torch.float32, device=slope.device)]
    adam(
        [move],
        [slope],
        [mean],
        [square],
        [],
        steps,
        fused=True,
        amsgrad=False,
        beta1=_BETAS[0],
        beta2=_BETAS[1],
        lr=learning_rate,
        weight_decay=0.0,
        eps=_EPSILON,
        maximize=False,
    )
    return move


def _damping_dtype(tokens: torch.Tensor) -> torch.dtype:
    """Damping is the one product of k^2 * O in a step, 137 Gflop at k = O = 4096, of a move that Adam only estimates.

    On a GPU it is worth tensor cores; what is written and what the loss sees are the same rounded move.
    """
    return torch.bfloat16 if tokens.is_cuda and tokens.dtype == torch.float32 else tokens.dtype


@dataclass(frozen=True)
class ActiveRowsLearned(Learned):
    """An update of an edit's rows."""

    change: torch.Tensor  # [k, O]
    plain: torch.Tensor  # [tokens, k], inputs of the plain row at the edit's columns

    def reads(self) -> torch.Tensor | None:
        """The inputs of its plain row."""
        return self.plain

    def write(self, memory: torch.Tensor) -> None:
        """memory[columns] += change, rounded once."""
        rows = self.columns.long()
        memory[rows] = (memory[rows].to(self.change.dtype) + self.change).to(memory.dtype)
