"""SGD in dual form: the update of W_m stays in the span of the edited layer's inputs, so only that span is learned.

An edit with n tokens has inputs A [n, k] at its columns; its update is dW = A^T C with C [n, O], and adds G C to the
layer's outputs, where G = A A^T is computed once. A step of SGD along the gradient g of the outputs is C -= lr * g, and
the norm of the gradient to W_m is sqrt(sum((G g) * g)): no step touches k or W_m.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from memoir_fast import ops
from memoir_fast.editing.batch import Batch
from memoir_fast.editing.context import Learned
from memoir_fast.recipe import Recipe


class Dual:
    """The coefficients C of a batch of edits; one Gram matrix over all their tokens carries the cross-talk.

    Memory: n^2 + 2 * n * O numbers, n the batch's tokens.
    """

    def __init__(self, batch: Batch, memory: torch.Tensor, recipe: Recipe) -> None:
        self._batch, self._recipe = batch, recipe
        self.steps = [0] * len(batch.a)
        self._gram = _joint_gram(batch)
        wide = self._gram.dtype
        pairs = zip(batch.a, batch.columns, strict=True)
        self._before = torch.cat([a @ memory[columns.long()].to(wide) for a, columns in pairs])  # [n, O]
        self._c = torch.zeros_like(self._before)

    def residual(self, edits: Sequence[int]) -> torch.Tensor:
        """What the memory would add to the layer's output at these edits' tokens, [tokens, O]."""
        spans = [self._batch.spans[edit] for edit in edits]
        return torch.cat([self._before[span] + self._gram[span] @ self._c for span in spans])

    def further(self, _: Sequence[int]) -> list[list[torch.Tensor]]:
        """It knows no further layers, see `Recipe.require_several_layers`."""
        return []

    def step(self, edit: int, gradient: torch.Tensor, _: Sequence[torch.Tensor] = ()) -> None:
        """One step of `edit` against its loss's gradient to its outputs, [its tokens, O]."""
        span, clip = self._batch.spans[edit], self._recipe.clip
        if clip is not None:
            norm = ((self._gram[span, span] @ gradient) * gradient).sum().clamp(min=0).sqrt()  # of A^T g
            gradient = gradient * (clip / (norm + 1e-6)).clamp(max=1.0)
        self._c[span] -= self._recipe.learning_rate * gradient
        self.steps[edit] += 1

    def learned(self, edit: int, loss: float) -> Learned:
        """The outcome of one edit."""
        batch = self._batch
        c = self._c[batch.spans[edit]]
        return DualLearned(
            batch.edits[edit], batch.masks[edit], batch.columns[edit], self.steps[edit], loss, batch.a[edit], c
        )


@dataclass(frozen=True)
class DualLearned(Learned):
    """An update in dual form."""

    a: torch.Tensor  # [n, k]
    c: torch.Tensor  # [n, O]

    def write(self, memory: torch.Tensor) -> None:
        """memory[columns] += a^T c."""
        ops.memory_update(memory, self.columns, self.a, self.c)


def _joint_gram(batch: Batch) -> torch.Tensor:
    """[n, n]: what a coefficient at one token adds to the output at another, through the columns their edits share."""
    tokens, spans = batch.tokens, batch.spans
    if len(spans) == 1:
        return batch.a[0] @ batch.a[0].mT
    sizes = torch.tensor([len(a) for a in batch.a], device=tokens.device)
    owned = torch.zeros((len(spans), tokens.shape[1]), dtype=tokens.dtype, device=tokens.device)
    owned.scatter_(1, batch.columns.long(), 1.0)
    gram = tokens.new_empty((len(tokens), len(tokens)))
    for a, span, columns in zip(batch.a, spans, batch.columns.long(), strict=True):
        shared = owned[:, columns].repeat_interleave(sizes, dim=0)  # [n, k]: does this token's edit own that column
        gram[:, span] = (tokens[:, columns] * shared) @ a.mT
    return gram
