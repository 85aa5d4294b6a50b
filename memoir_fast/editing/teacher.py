"""`Teacher`: takes requests, learns them in batches, and writes each whole or not at all."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch

from memoir_fast.core.edit import Edit
from memoir_fast.editing import fast, paper
from memoir_fast.editing.batch import inputs_of
from memoir_fast.editing.context import EditContext, Learned
from memoir_fast.editing.footprint import largest_batch
from memoir_fast.errors import StoreFullError
from memoir_fast.hf.tokens import Row
from memoir_fast.recipe import Recipe

_ROWS_AT_ONCE = 16  # whose inputs are read together


@dataclass(frozen=True)
class EditResult:
    """What became of one edit."""

    edit_id: int
    prompt: str
    target: str
    learned: bool
    """The loss on the target fell to the recipe's bar."""
    loss: float
    steps: int
    seconds: float
    replaced: bool
    """An earlier edit of the same prompt had this id and is gone."""


class Teacher:
    """Learns edits into a memory.

    Other threads may generate meanwhile, and teach or delete between two edits.

    Args:
        context (EditContext): the model, its layer with store and memory, the prefixes.
        edits (dict): the live edits by id; kept up to date.
        prepare_threshold, choose_threshold (callable, optional): called before an edit is written, and as the last part
            of writing it, during which other threads wait.
    """

    def __init__(
        self,
        context: EditContext,
        edits: dict[int, Edit],
        prepare_threshold: Callable[[], None] = lambda: None,
        choose_threshold: Callable[[], None] = lambda: None,
    ) -> None:
        self._context, self._edits = context, edits
        self._prepare_threshold, self._choose_threshold = prepare_threshold, choose_threshold
        self._ids = _by_prompt(edits)
        self._written: int | None = None  # the layer's writes, as far as this teacher knows of them

    def _id(self, prompt: str) -> int | None:
        """The live edit of that prompt; one may have been deleted while a stream runs."""
        edit_id = self._ids.get(prompt)
        return edit_id if edit_id in self._edits else None

    def prepare(self, edit: Edit, recipe: Recipe) -> tuple[Edit, list[Row]]:
        """The edit's token rows. ValueError where it cannot be learned."""
        return edit, self._context.rows(edit, recipe.prefixes, recipe.rewordings, recipe.tokens, recipe.stop)

    def require_room(self, edits: Iterable[Edit]) -> None:
        """StoreFullError where the edits with new prompts do not all fit."""
        store = self._context.layer.store
        new = {edit.prompt for edit in edits if self._id(edit.prompt) is None}
        if store.max_edits is not None and len(store) + len(new) > store.max_edits:
            raise StoreFullError(
                f"the store holds {len(store)} of max_edits = {store.max_edits}, {len(new)} more do not fit"
            )

    def stream(self, edits: Iterable[Edit], recipe: Recipe) -> Iterator[EditResult]:
        """Learns edits as they come, `recipe.batch` at a time; what was yielded is in the memory."""
        layer = self._context.layer
        for batch in _batches(edits, lambda edit: self._batch_size(edit, recipe)):
            outcome: list[Learned] = []
            seconds = 0.0
            for index in range(len(batch)):
                # tensors made in inference mode could not be changed outside of it
                with layer.learning(), torch.inference_mode(False):
                    if not outcome or self._written != layer.written:  # another has written since these were learned
                        outcome, seconds = self._learn(batch[index:], recipe)
                    result = self._write(outcome.pop(0), recipe, seconds)
                    self._written = layer.written
                yield result

    def _learn(self, edits: list[Edit], recipe: Recipe) -> tuple[list[Learned], float]:
        """Learns edits together, on top of what the memory holds; also the seconds that each took."""
        if self._written != self._context.layer.written:
            self._ids = _by_prompt(self._edits)
            if recipe.damping:
                self._update_needs(recipe)
        self.require_room(edits)
        started = time.perf_counter()
        learn = {"paper": paper.learn, "fast": fast.learn}[recipe.method]
        outcome = learn(self._context, [self.prepare(edit, recipe) for edit in edits], recipe)
        return outcome, (time.perf_counter() - started) / len(edits)

    def _write(self, learned: Learned, recipe: Recipe, seconds: float) -> EditResult:
        """Commits one learned edit, and notes what it reads."""
        result, reads = self._commit(learned, recipe, seconds), learned.reads()
        if recipe.damping and reads is not None:
            self._forget_needs([result.edit_id], recipe)  # of the edit that this one replaced
            width = self._context.layer.store.width
            self._context.needs.add(result.edit_id, learned.edit, width, learned.columns, reads)
        return result

    def _update_needs(self, recipe: Recipe) -> None:
        """Notes what every live edit reads that is not noted yet, and takes out what is no longer live.

        The former are those of a loaded memory, or of another recipe; the latter were deleted or replaced.
        """
        needs = self._context.needs
        self._forget_needs([one for one, edit in needs.known.items() if self._edits.get(one) != edit], recipe)
        new = {edit_id: edit for edit_id, edit in self._edits.items() if edit_id not in needs.known}
        for edit_id, edit, columns, reads in self._reads(new, recipe):
            needs.add(edit_id, edit, self._context.layer.store.width, columns, reads)

    def _forget_needs(self, edit_ids: Iterable[int], recipe: Recipe) -> None:
        """Takes those out again that were noted. What they read is read once more, from their texts."""
        needs = self._context.needs
        known = {edit_id: needs.known[edit_id] for edit_id in edit_ids if edit_id in needs.known}
        for edit_id, _, columns, reads in self._reads(known, recipe):
            needs.remove(edit_id, columns, reads)

    def _reads(self, edits: dict[int, Edit], recipe: Recipe) -> Iterator[tuple[int, Edit, torch.Tensor, torch.Tensor]]:
        """Each edit with its columns int32 [k] and the layer's inputs there [tokens, k] on its plain row."""
        columns, ids = self._context.layer.store.columns, list(edits)
        for start in range(0, len(ids), _ROWS_AT_ONCE):
            some = ids[start : start + _ROWS_AT_ONCE]
            rows = [self._context.rows(edits[edit_id], stop=recipe.stop)[0] for edit_id in some]
            for edit_id, x in zip(some, inputs_of(self._context, rows), strict=True):
                yield edit_id, edits[edit_id], columns[edit_id], x[:, columns[edit_id].long()]

    def _batch_size(self, first: Edit, recipe: Recipe) -> int:
        if isinstance(recipe.batch, int):
            return recipe.batch
        return largest_batch(self._context, self.prepare(first, recipe)[1], recipe)

    def _commit(self, learned: Learned, recipe: Recipe, seconds: float) -> EditResult:
        """Writes one learned edit to the memory and the store, or changes nothing at all."""
        old = self._id(learned.edit.prompt)
        self._prepare_threshold()
        with self._context.layer.changing(weight=True, rows=old is not None):
            return self._write_whole(learned, recipe, seconds, old)

    def _write_whole(self, learned: Learned, recipe: Recipe, seconds: float, old: int | None) -> EditResult:
        edit, store, memory = learned.edit, self._context.layer.store, self._context.layer.memory.weight
        changed, rows = learned.rows(), len(store)
        replaced = {} if old is None else {old: self._edits[old]}
        kept = memory[changed].clone()
        kept_mask = None if old is None else (store.masks[old].clone(), store.columns[old].clone())
        try:
            with torch.no_grad():
                learned.write(memory)
                if old is None:
                    edit_id = store.append(learned.mask, learned.columns)
                else:
                    edit_id = old
                    store.masks[old], store.columns[old] = learned.mask, learned.columns
            result = EditResult(
                edit_id,
                edit.prompt,
                edit.target,
                learned=learned.loss <= recipe.bar,
                loss=learned.loss,
                steps=learned.steps,
                seconds=seconds,
                replaced=old is not None,
            )
            self._edits[edit_id], self._ids[edit.prompt] = edit, edit_id
            self._choose_threshold()
        except BaseException:
            memory[changed] = kept
            if kept_mask is not None:
                store.masks[old], store.columns[old] = kept_mask
            store.truncate(rows)
            if old is None:
                self._edits.pop(rows, None)
            self._edits.update(replaced)
            raise
        return result


def _by_prompt(edits: dict[int, Edit]) -> dict[str, int]:
    return {edit.prompt: edit_id for edit_id, edit in edits.items()}


def _batches(edits: Iterable[Edit], size: Callable[[Edit], int]) -> Iterator[list[Edit]]:
    """Lists of up to `size(first)` edits; a prompt that comes again begins a new list: it replaces the earlier edit."""
    batch: list[Edit] = []
    room = 1
    for edit in edits:
        if len(batch) == room or any(edit.prompt == other.prompt for other in batch):
            yield batch
            batch = []
        if not batch:
            room = size(edit)
        batch.append(edit)
    if batch:
        yield batch
