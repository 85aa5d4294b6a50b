"""`recipe="fast"`: the published mathematics without the waste, for one edit or many at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from memoir_fast import ops
from memoir_fast.editing.context import EditContext, Learned
from memoir_fast.editing.dual import Coefficients
from memoir_fast.editing.recipe import Recipe
from memoir_fast.editing.request import Edit, Row, pad, padding_id, prompt_ids
from memoir_fast.editing.trunk import frozen
from memoir_fast.presets import device_of


class _Batch:
    """A joint problem: the rows of E edits, run through the trunk, and what couples their residuals.

    Tokens are the batch's real ones, in order, so those of an edit are one span; n is their number.
    """

    def __init__(self, context: EditContext, wanted: Sequence[tuple[Edit, list[Row]]]) -> None:
        rows = [row for _, rows in wanted for row in rows]
        input_ids, mask, labels = pad(rows, padding_id(context.tokenizer), device_of(context.model))
        self.tail = context.tail
        self.trunk = self.tail.trunk(input_ids, mask)
        x = self.trunk.x
        self.real = mask.bool().to(x.device)
        self.labels = labels[:, 1:].to(x.device)
        owner = [index for index, (_, rows) in enumerate(wanted) for _ in rows]
        self.owner = torch.tensor(owner, device=x.device)
        lengths = [sum(len(row.ids) for row in rows) for _, rows in wanted]
        self.spans = [slice(sum(lengths[:index]), sum(lengths[: index + 1])) for index in range(len(lengths))]
        self.masks, self.columns = self._hash(context, wanted)
        self.a, self.gram = self._inputs_and_gram(x[self.real])
        memory = context.layer.memory.weight
        wide = self.gram.dtype
        self.before = torch.cat(
            [a @ memory[columns.long()].to(wide) for a, columns in zip(self.a, self.columns, strict=True)]
        )  # what earlier edits wrote into these columns adds to the outputs, [n, O]

    def _hash(
        self, context: EditContext, wanted: Sequence[tuple[Edit, list[Row]]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Masks int32 [E, W] and columns int32 [E, k], from each edit's plain row, which is its first."""
        first = [int((self.owner < index).sum()) for index in range(len(wanted))]
        lengths = torch.tensor([rows[0].prompt for _, rows in wanted], device=self.owner.device)
        x = self.trunk.x[first]
        prompt = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
        masks, columns = context.hashed(x, prompt, [edit for edit, _ in wanted])
        for index, (edit, rows) in enumerate(wanted):
            if rows[0].ids[: rows[0].prompt] != prompt_ids(context.tokenizer, edit.prompt):
                masks[index], columns[index] = context.hash(edit)
        return masks, columns

    def _inputs_and_gram(self, x: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Each edit's inputs A [n_e, k] and the Gram matrix [n, n] of all, edits that share columns included."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        a = [x[span][:, columns.long()] for span, columns in zip(self.spans, self.columns, strict=True)]
        if len(a) == 1:
            return a, a[0] @ a[0].mT
        active = torch.zeros((len(a), x.shape[1]), dtype=x.dtype, device=x.device)
        active.scatter_(1, self.columns.long(), 1.0)
        gram = x.new_empty((len(x), len(x)))
        for one, span in enumerate(self.spans):
            shared = active[:, self.columns[one].long()].repeat_interleave(
                torch.tensor([len(part) for part in a], device=x.device), dim=0
            )  # [n, k]: may this token read this column of edit `one`
            gram[:, span] = (x[:, self.columns[one].long()] * shared) @ a[one].mT
        return a, gram

    def choose(self, edits: Sequence[int]) -> None:
        """Only the rows of these edits take part in what follows."""
        chosen = torch.isin(self.owner, torch.tensor(edits, device=self.owner.device))
        self._trunk, self._real, labels = self.trunk.select(chosen), self.real[chosen], self.labels[chosen]
        self._positions = F.pad(labels != -100, (0, 1))
        self._targets = labels[labels != -100]
        self._row = self._positions.nonzero()[:, 0]
        counts = (labels != -100).sum(dim=1)
        place = torch.searchsorted(torch.tensor(edits, device=self.owner.device), self.owner[chosen])
        rows = torch.bincount(place, minlength=len(edits))
        self._weight = 1.0 / ((counts + 1) * rows[place]).to(self.gram.dtype)[self._row]  # of each target token
        self._place = place[self._row]
        self._tokens = torch.cat([torch.arange(self.spans[e].start, self.spans[e].stop) for e in edits])
        self._edits = len(edits)

    def losses(self, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Each chosen edit's loss [edits], and what it is computed from: their residuals [tokens, O], a leaf."""
        delta = self.before[self._tokens] + self.gram[self._tokens] @ c
        delta.requires_grad_(torch.is_grad_enabled())
        residual = delta.new_zeros((*self._real.shape, delta.shape[1])).masked_scatter(self._real[..., None], delta)
        logits = self.tail.logits(self._trunk, residual, self._positions).to(delta.dtype)
        per_token = F.cross_entropy(logits, self._targets, reduction="none") * self._weight
        return torch.zeros(self._edits, dtype=delta.dtype, device=delta.device).index_add(
            0, self._place, per_token
        ), delta


def learn(context: EditContext, wanted: Sequence[tuple[Edit, list[Row]]], recipe: Recipe) -> list[Learned]:
    """Learns a batch of edits as one joint problem, each with its own clip and early stop.

    The trunk runs once; every step runs only the tail of the model, on the rows of the edits that are not yet learned,
    with logits at target positions alone. An edit that was learned, and that the others then disturbed, is taken up
    again. With one edit in the batch this is the sequential procedure.

    Loss: as in the published loop, see `paper.row_losses`.
    """
    batch = _Batch(context, wanted)
    everything = list(range(len(wanted)))
    c = torch.zeros_like(batch.before)
    parts = [Coefficients(batch.gram[span, span], c[span], recipe) for span in batch.spans]
    loss = [[float("inf")] for _ in wanted]
    active = everything
    with frozen(context.model):
        while active:
            batch.choose(active)
            learning = active
            while learning == active:
                with torch.enable_grad():
                    found, delta = batch.losses(c)
                for edit, value in zip(active, found.detach().tolist(), strict=True):
                    loss[edit].append(value)
                learning = [
                    edit for edit in active if not _done(loss[edit], recipe) and parts[edit].steps < recipe.steps
                ]
                if learning:
                    (gradient,) = torch.autograd.grad(found.sum(), delta)
                start = 0
                for edit in active:
                    size = len(batch.a[edit])
                    if edit in learning:
                        parts[edit].step(gradient[start : start + size])
                    start += size
            active = learning
            if not active and len(everything) > 1:
                active = _disturbed(batch, c, parts, loss, recipe)
    return [
        FastLearned(
            edit,
            batch.masks[index],
            batch.columns[index],
            parts[index].steps,
            loss[index][-1],
            batch.a[index],
            c[batch.spans[index]],
        )
        for index, (edit, _) in enumerate(wanted)
    ]


def _done(losses: list[float], recipe: Recipe) -> bool:
    return losses[-1] <= recipe.bar and abs(losses[-1] - losses[-2]) <= recipe.settled


def _disturbed(
    batch: _Batch, c: torch.Tensor, parts: list[Coefficients], loss: list[list[float]], recipe: Recipe
) -> list[int]:
    """Checks all edits under the final coefficients; those that can still be helped."""
    everything = list(range(len(parts)))
    batch.choose(everything)
    with torch.no_grad():
        found, _ = batch.losses(c)
    for edit, value in enumerate(found.tolist()):
        loss[edit].append(value)
    return [
        edit for edit in everything if loss[edit][-1] > recipe.bar * _TOLERANCE and parts[edit].steps < recipe.steps
    ]


_TOLERANCE = 1.5  # a learned edit is taken up again where the others in its batch raised its loss above this many bars


@dataclass(frozen=True)
class FastLearned(Learned):
    """The outcome in dual form."""

    a: torch.Tensor  # [n, k]
    c: torch.Tensor  # [n, O]

    def write(self, memory: torch.Tensor) -> None:
        """memory[columns] += a^T c."""
        ops.memory_update(memory, self.columns, self.a, self.c)
