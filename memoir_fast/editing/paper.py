"""`recipe="paper"`: one edit as published, written plainly. It is the oracle for every faster recipe."""

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from memoir_fast.core.edit import Edit
from memoir_fast.editing.batch import Wanted
from memoir_fast.editing.context import EditContext, Learned, frozen, gradient_of
from memoir_fast.hf.own_pass import uncompiled
from memoir_fast.hf.presets import device_of
from memoir_fast.hf.tokens import Row, pad, padding_id
from memoir_fast.recipe import Recipe


@dataclass(frozen=True)
class PaperLearned(Learned):
    """The outcome of the published loop."""

    active: torch.Tensor  # [k, O], the edit's rows of W_m from now on
    kept: float  # what weight decay has left of all other rows

    def rows(self) -> torch.Tensor | slice:
        """All of them, where there is decay."""
        return super().rows() if self.kept == 1.0 else slice(None)

    def write(self, memory: torch.Tensor) -> None:
        """Decays all of the page [D, O], then sets the edit's rows."""
        if self.kept != 1.0:
            memory *= self.kept
        memory[self.columns.long()] = self.active.to(memory.dtype)


def row_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Per row, the cross-entropy summed over the target's tokens, divided by their number plus one.

    The published mask starts one position early, on a label that adds nothing but is counted.

    Args:
        logits (Tensor): [B, S, V]. labels (Tensor): int64 [B, S], -100 outside of the targets.

    Returns:
        Tensor: [B].
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    per_token = F.cross_entropy(logits[:, :-1].to(wide).mT, labels[:, 1:], ignore_index=-100, reduction="none")
    return per_token.sum(dim=1) / ((labels[:, 1:] != -100).sum(dim=1) + 1)


def learn(context: EditContext, wanted: Wanted, recipe: Recipe, page: int) -> list[Learned]:
    """Learns one edit (more would need what the ones before have written): see `_learn_one`."""
    (one,) = wanted
    return [_learn_one(context, one.edit, one.rows, recipe, context.layer.memory.whole(page))]


def _learn_one(
    context: EditContext, edit: Edit, relevant: list[Row], recipe: Recipe, memory: torch.Tensor
) -> PaperLearned:
    """Learns one edit: full forward and backward passes of the model over its rows, clipped SGD on the k rows of W_m.

    Rows: the prompt, the prompt after each prefix, and one irrelevant prompt whose output is thrown away, as
    published. Every token of every row goes through the edit's columns. Source: MEMOIR (arXiv 2506.07899), section 3.2.
    """
    model, layer = context.model, context.layer
    input_ids, mask, labels = pad([*relevant, context.irrelevant_row], padding_id(context.tokenizer), device_of(model))
    stored, owned = context.hash(edit.prompt)
    columns = owned.long()
    rows = memory[columns].to(torch.promote_types(memory.dtype, torch.float32)).requires_grad_()

    def through_rows(own: slice | None, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        weight = rows if own is None else rows[:, own]
        return y + (layer.whole(x).index_select(-1, columns).to(rows.dtype) @ weight).to(y.dtype)

    losses: list[float] = []
    steps = 0
    with ExitStack() as learning:
        for block in (uncompiled(model.modules()), frozen(model), torch.enable_grad()):
            learning.enter_context(block)
        for one in (layer, *layer.further):
            learning.enter_context(one.replacing_output(partial(through_rows, one.outputs)))
        for _ in range(recipe.steps):
            logits = model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits
            loss = row_losses(logits, labels)[: len(relevant)].mean()
            losses.append(layer.agreed(loss.detach()).item())
            settled = recipe.settled is None or (len(losses) > 1 and abs(losses[-1] - losses[-2]) <= recipe.settled)
            if settled and losses[-1] <= recipe.bar:
                break
            gradient = layer.agreed(gradient_of(loss, rows))
            if recipe.clip is not None:
                gradient *= (recipe.clip / (gradient.norm() + 1e-6)).clamp(max=1.0)
            with torch.no_grad():
                rows -= recipe.learning_rate * (gradient + recipe.weight_decay * rows)
            steps += 1
    kept = (1 - recipe.learning_rate * recipe.weight_decay) ** steps
    return PaperLearned(edit, stored, owned, steps, losses[-1], rows.detach(), kept)
