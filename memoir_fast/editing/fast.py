"""`recipe="fast"`: the published method without the waste, for one edit or many at once."""

from collections.abc import Callable
from itertools import chain

import torch

from memoir_fast.editing.active_rows import ActiveRows
from memoir_fast.editing.batch import Batch, Wanted
from memoir_fast.editing.context import EditContext, Learned, frozen, gradients_of
from memoir_fast.editing.dual import Dual
from memoir_fast.recipe import Recipe

# An edit of a batch is learned further where the others have raised its loss to more than so many times the threshold.
_DISTURBED = 1.5

Agreed = Callable[[torch.Tensor], torch.Tensor]
"""Of processes that learn together: gives all of them the first one's tensor, so that they step and stop alike."""


def learn(context: EditContext, wanted: Wanted, recipe: Recipe, page: int) -> list[Learned]:
    """Learns a batch of edits on one page, as one joint problem, each with its own clip and early stop.

    The lower layers run once; every step runs only the upper ones, on the rows of the edits that are not yet learned,
    with logits at target positions alone. An edit that was learned, and whose loss the others then raised, is learned
    further. With one edit in the batch this is the sequential procedure.
    """
    batch = Batch(context, wanted)
    memory, agreed = context.layer.memory.whole(page), context.layer.agreed
    adam = recipe.optimizer == "adam"
    interference = context.interference.of(page)
    rows = ActiveRows(batch, memory, recipe, interference) if adam else Dual(batch, memory, recipe)
    everything = list(range(len(wanted)))
    losses: list[list[float]] = [[float("inf")] for _ in everything]
    with frozen(context.model):
        learning = everything
        while learning:
            stepped, learning = learning, _step(batch, rows, recipe, learning, losses, agreed)
            if not learning and stepped != everything:  # else the losses just seen are those of the rows as they are
                learning = _check(batch, rows, recipe, losses, agreed)
    return [rows.learned(index, losses[index][-1]) for index in everything]


def _step(
    batch: Batch,
    rows: ActiveRows | Dual,
    recipe: Recipe,
    active: list[int],
    losses: list[list[float]],
    agreed: Agreed,
) -> list[int]:
    """Steps the active edits that are not done, and returns those."""
    batch.choose(active)
    residual = rows.residual(active).requires_grad_()
    further = [[one.requires_grad_() for one in layer] for layer in rows.further(active)]
    with torch.enable_grad():
        both = torch.stack(batch.losses(residual, further))
    own, unlike = agreed(both.detach()).tolist()  # the step's only wait for the device
    _note(losses, active, own)
    undone = [
        edit
        for edit, far in zip(active, unlike, strict=True)
        if (far > recipe.quiet_bar or not _done(losses[edit], recipe)) and rows.steps[edit] < recipe.steps
    ]
    if undone:
        gradient, *others = gradients_of(both, [residual, *chain.from_iterable(further)])
        slopes = agreed(gradient).split([len(batch.a[edit]) for edit in active])
        for place, (edit, slope) in enumerate(zip(active, slopes, strict=True)):
            if edit in undone:
                rows.step(edit, slope, others[place :: len(active)])
    return undone


def _check(
    batch: Batch, rows: ActiveRows | Dual, recipe: Recipe, losses: list[list[float]], agreed: Agreed
) -> list[int]:
    """Notes every edit's loss as the rows are now; returns the edits above the loss threshold that have steps left."""
    everything = list(range(len(batch.a)))
    batch.choose(everything)
    with torch.no_grad():
        found, _ = batch.losses(rows.residual(everything), rows.further(everything))
        _note(losses, everything, agreed(found).tolist())
    bar = recipe.bar * _DISTURBED
    return [edit for edit in everything if losses[edit][-1] > bar and rows.steps[edit] < recipe.steps]


def _note(losses: list[list[float]], edits: list[int], found: list[float]) -> None:
    for edit, value in zip(edits, found, strict=True):
        losses[edit].append(value)


def _done(losses: list[float], recipe: Recipe) -> bool:
    settled = recipe.settled is None or abs(losses[-1] - losses[-2]) <= recipe.settled
    return settled and losses[-1] <= min(recipe.bar, recipe.bar if recipe.enough is None else recipe.enough)
