"""`Teacher`: takes requests, learns them in batches, and writes each whole or not at all."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from memoir_fast.core.edit import Edit
from memoir_fast.core.live_edits import LiveEdits
from memoir_fast.editing import fast, paper
from memoir_fast.editing.batch import Request, inputs_of
from memoir_fast.editing.code_rows import CodeRows, code_rows
from memoir_fast.editing.context import EditContext, Learned
from memoir_fast.editing.footprint import largest_batch
from memoir_fast.errors import StoreFullError
from memoir_fast.hf.tokens import Row, prompt_ids
from memoir_fast.recipe import Recipe

_ROWS_AT_ONCE = 16  # whose inputs are read together


@dataclass(frozen=True)
class EditResult:
    """What became of one edit."""

    edit_id: int
    prompt: str
    target: str
    learned: bool
    """The loss on the target fell to the recipe's loss threshold, `bar`."""
    loss: float
    steps: int
    seconds: float
    replaced: bool
    """An earlier edit of the same prompt had this id and is gone."""
    reach: float | None = None
    """How much room there is between what must match the edit and what must not: the least overlap of a rewording
    less the threshold, as a share of a code's bits. Below 0 some cannot be told apart. None without codes."""


Prepared = tuple[Edit, list[Row]]


class Teacher:
    """Learns edits into a memory.

    Other threads may generate meanwhile, and teach or delete between two edits.

    Args:
        context (EditContext): the model, its layer with store and memory, the prefixes.
        edits (LiveEdits): the edits that the memory holds.
        prepare_threshold, choose_threshold (callable, optional): called before an edit is written, and as the last part
            of writing it, during which other threads wait.
    """

    def __init__(
        self,
        context: EditContext,
        edits: LiveEdits,
        prepare_threshold: Callable[[], None] = lambda: None,
        choose_threshold: Callable[[], None] = lambda: None,
    ) -> None:
        self._context, self._edits = context, edits
        self._prepare_threshold, self._choose_threshold = prepare_threshold, choose_threshold

    def prepare(self, edit: Edit, recipe: Recipe) -> Prepared:
        """An edit with its token rows. ValueError where it cannot be learned."""
        return edit, self._context.rows(
            edit, recipe.prefixes, recipe.rewordings, recipe.tokens, recipe.stop, recipe.chat, recipe.questions
        )

    def require_room(self, edits: Iterable[Edit]) -> None:
        """StoreFullError where the edits with new prompts do not all fit."""
        store = self._context.layer.store
        new = {edit.prompt for edit in edits if self._edits.id_of(edit.prompt) is None}
        if store.max_edits is not None and len(store) + len(new) > store.max_edits:
            raise StoreFullError(
                f"the store holds {len(store)} of max_edits = {store.max_edits}, {len(new)} more do not fit"
            )

    def stream(self, prepared: Iterable[Prepared], recipe: Recipe) -> Iterator[EditResult]:
        """Learns edits as they come, `recipe.batch` at a time; what was yielded is in the memory."""
        layer = self._context.layer
        for batch in _batches(prepared, lambda rows: self._batch_size(rows, recipe)):
            outcome: list[tuple[Learned, CodeRows | None]] = []
            seconds, written = 0.0, -1
            for index in range(len(batch)):
                # tensors made in inference mode could not be changed outside of it
                with layer.learning(), torch.inference_mode(False):
                    if not outcome or written != layer.written:  # another has written since these were learned
                        outcome, seconds = self._learn(batch[index:], recipe)
                    result = self._write(*outcome.pop(0), recipe, seconds)
                    written = layer.written
                yield result

    def _learn(self, prepared: list[Prepared], recipe: Recipe) -> tuple[list[tuple[Learned, CodeRows | None]], float]:
        """Learns edits together, on top of what the memory holds, with their codes; also the seconds that each took."""
        self.require_room(edit for edit, _ in prepared)
        if recipe.damping:
            self.update_interference(recipe)
        started = time.perf_counter()
        learn = {"paper": paper.learn, "fast": fast.learn}[recipe.method]
        codes = [self._codes(edit) for edit, _ in prepared]
        outcome = learn(
            self._context, [self._request(*one, recipe) for one in zip(prepared, codes, strict=True)], recipe
        )
        return list(zip(outcome, codes, strict=True)), (time.perf_counter() - started) / len(prepared)

    def _request(self, prepared: Prepared, codes: CodeRows | None, recipe: Recipe) -> Request:
        edit, rows = prepared
        if recipe.method != "fast":
            return Request(edit, rows)
        quiet = list(edit.keep)
        if codes is not None:
            quiet += [text for text in codes.quiet if text not in quiet][: recipe.quiet]
        return Request(edit, rows, [Row(ids, len(ids)) for ids in map(self._ids, quiet)], recipe.boundary)

    def _ids(self, prompt: str) -> list[int]:
        return prompt_ids(self._context.tokenizer, prompt)

    def _write(self, learned: Learned, codes: CodeRows | None, recipe: Recipe, seconds: float) -> EditResult:
        """Commits one learned edit, and counts what it reads."""
        result, reads = self._commit(learned, codes, recipe, seconds), learned.reads()
        if recipe.damping and reads is not None:
            self._take_out_gone()  # the edit that this one replaced
            self._context.interference.add(self._context.layer.store.width, learned.columns, reads)
            self._edits.count(result.edit_id, recipe.stop)
        return result

    def update_interference(self, recipe: Recipe) -> None:
        """Counts what every live edit reads that is not counted yet, and takes out what is no longer live.

        The former are edits of a loaded memory, or of a recipe that counts nothing; they are read once more, from their
        texts, with the end token where `recipe` has it.
        """
        self._take_out_gone()
        interference, store, new = self._context.interference, self._context.layer.store, self._edits.uncounted
        wanted = [(edit, recipe.stop, store.columns[edit_id]) for edit_id, edit in new.items()]
        for edit_id, (_, _, columns), reads in zip(new, wanted, self._reads(wanted), strict=True):
            interference.add(store.width, columns, reads)
            self._edits.count(edit_id, recipe.stop)

    def _take_out_gone(self) -> None:
        """Takes replaced and deleted edits out of the interference, each read once more as it was when it came in."""
        gone = self._edits.gone
        for one, reads in zip(list(gone), self._reads(list(gone)), strict=True):
            self._context.interference.remove(one.columns, reads)
            gone.pop(0)

    def _reads(self, wanted: Sequence[tuple[Edit, bool, torch.Tensor]]) -> Iterator[torch.Tensor]:
        """Per edit, whether its row ends in the end token, and its columns: the layer's inputs [tokens, k] there."""
        for start in range(0, len(wanted), _ROWS_AT_ONCE):
            some = wanted[start : start + _ROWS_AT_ONCE]
            rows = [self._context.rows(edit, stop=stop)[0] for edit, stop, _ in some]
            for (_, _, columns), x in zip(some, inputs_of(self._context, rows), strict=True):
                yield x[:, columns.long()]

    def _codes(self, edit: Edit) -> CodeRows | None:
        """The routing codes of an edit; None where masks tell whom a prompt belongs to."""
        context = self._context
        others = [one.prompt for one in self._edits.values() if one.prompt != edit.prompt]
        return code_rows(context.model, context.layer, context.tokenizer, edit, others)

    def _batch_size(self, rows: list[Row], recipe: Recipe) -> int:
        return recipe.batch if isinstance(recipe.batch, int) else largest_batch(self._context, rows, recipe)

    def _commit(self, learned: Learned, codes: CodeRows | None, recipe: Recipe, seconds: float) -> EditResult:
        """Writes one learned edit to the memory and the store, or changes nothing at all."""
        edit, layer = learned.edit, self._context.layer
        replaced = self._edits.id_of(edit.prompt) is not None
        tokens = self._context.target_tokens(edit, recipe.boundary) if recipe.rest else (0, 0)
        self._prepare_threshold()
        with layer.changing(weight=True, rows=replaced):
            memory, changed = layer.memory.weight, learned.rows()
            kept = memory[changed].clone()
            try:
                with torch.no_grad(), self._edits.put(edit, learned.mask, learned.columns, codes) as edit_id:
                    learned.write(memory)
                    layer.store.rest_after(edit_id, tokens)
                    self._choose_threshold()
                    result = EditResult(
                        edit_id,
                        edit.prompt,
                        edit.target,
                        learned=learned.loss <= recipe.bar,
                        loss=learned.loss,
                        steps=learned.steps,
                        seconds=seconds,
                        replaced=replaced,
                        reach=None if codes is None else codes.spare / layer.searched.k,
                    )
            except BaseException:
                memory[changed] = kept
                raise
        return result


def _batches(prepared: Iterable[Prepared], size: Callable[[list[Row]], int]) -> Iterator[list[Prepared]]:
    """Lists of up to `size(rows of the first)`; a prompt that comes again begins a new one: it replaces the earlier."""
    batch: list[Prepared] = []
    room = 1
    for edit, rows in prepared:
        if len(batch) == room or any(edit.prompt == other.prompt for other, _ in batch):
            yield batch
            batch = []
        if not batch:
            room = size(rows)
        batch.append((edit, rows))
    if batch:
        yield batch
