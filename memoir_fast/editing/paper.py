"""`recipe="paper"`: one edit as published, written plainly. It is the oracle for every faster recipe."""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from memoir_fast.editing.context import EditContext, Request
from memoir_fast.editing.recipe import Recipe
from memoir_fast.editing.request import pad, padding_id
from memoir_fast.editing.trunk import frozen
from memoir_fast.presets import device_of


class PaperLearned(NamedTuple):
    """The outcome of the published loop, not yet written: new rows [k, O] and what decay has left of all others."""

    columns: torch.Tensor
    rows: torch.Tensor
    kept: float
    steps: int
    loss: float

    def write(self, memory: torch.Tensor) -> None:
        """Decays all of memory [D, O], then sets the edit's rows."""
        if self.kept != 1.0:
            memory *= self.kept
        memory[self.columns.long()] = self.rows.to(memory.dtype)


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


def learn(context: EditContext, request: Request, recipe: Recipe) -> PaperLearned:
    """Learns one edit: full forward and backward passes of the model over its rows, clipped SGD on the k rows of W_m.

    Rows: the prompt, the prompt after each prefix, and one irrelevant prompt whose output is thrown away, as
    published. Every token of every row goes through the edit's columns. Source: MEMOIR (arXiv 2506.07899), section 3.2.
    """
    model, layer = context.model, context.layer
    relevant = len(request.rows)
    rows = [*request.rows, context.irrelevant_row]
    input_ids, mask, labels = pad(rows, padding_id(context.tokenizer), device_of(model))
    columns = request.columns.long()
    memory = layer.memory.weight
    slab = memory[columns].to(torch.promote_types(memory.dtype, torch.float32)).requires_grad_()
    losses: list[float] = []
    steps = 0
    with frozen(model), torch.enable_grad(), layer.draft(columns, slab):
        for _ in range(recipe.steps):
            logits = model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits
            loss = row_losses(logits, labels)[:relevant].mean()
            losses.append(loss.item())
            if len(losses) > 1 and abs(losses[-1] - losses[-2]) <= recipe.settled and losses[-1] <= recipe.bar:
                break
            (gradient,) = torch.autograd.grad(loss, slab)
            if recipe.clip is not None:
                gradient *= (recipe.clip / (gradient.norm() + 1e-6)).clamp(max=1.0)
            with torch.no_grad():
                slab -= recipe.learning_rate * (gradient + recipe.weight_decay * slab)
            steps += 1
    kept = (1 - recipe.learning_rate * recipe.weight_decay) ** steps
    return PaperLearned(request.columns, slab.detach(), kept, steps, losses[-1])
