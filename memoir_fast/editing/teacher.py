"""`Teacher`: takes requests, learns them in batches, and writes each whole or not at all."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch

from memoir_fast.core import pages
from memoir_fast.core.edit import Edit
from memoir_fast.core.live_edits import LiveEdits
from memoir_fast.core.reads import Reads
from memoir_fast.editing import fast, paper
from memoir_fast.editing.batch import Request, inputs_of
from memoir_fast.editing.code_rows import CodeRows, about, code_rows, require_weight
from memoir_fast.editing.context import EditContext, Learned
from memoir_fast.editing.footprint import LARGEST_BATCH, largest_batch
from memoir_fast.errors import StoreFullError
from memoir_fast.hf.tokens import Row, prompt_ids
from memoir_fast.ops import mask_columns
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
    """An earlier edit of the same prompt, in the same bank, had this id and is gone."""
    reach: float | None = None
    """How much room there is between what must match the edit and what must not: the least overlap of a rewording
    less the threshold, as a share of a code's bits. Below 0 some cannot be told apart. None without codes."""
    bank: str = ""
    """The bank that it is in; \"\" for none."""


Prepared = tuple[Edit, list[Row]]


class Written(NamedTuple):
    """An edit that was just written to the memory and the store."""

    edit_id: int
    rows: torch.Tensor | slice
    """Which rows of its page have changed."""
    page: int
    emptied: bool
    """The page was opened or emptied for it."""
    codes: CodeRows | None
    reads: Reads | None = None
    """What it reads, where that is counted and is to be kept."""


class _Outcome(NamedTuple):
    """What was learned of one edit and where it is to be written."""

    learned: Learned
    codes: CodeRows | None
    page: int
    seconds: float


class Teacher:
    """Learns edits into a memory.

    Other threads may generate meanwhile, and teach or delete between two edits.

    Args:
        context (EditContext): the model, its layer with store and memory, the prefixes.
        edits (LiveEdits): the edits that the memory holds.
        page_edits (int): edits that a page of memory takes before the next is opened.
        prepare (callable, optional): called before an edit is written.
        put_down (callable, optional): called as the last part of writing an edit, during which other threads wait; if
            it raises, the edit is not made.
        all_or_nothing (callable, optional): gives what an edit is written in; where that ends by an exception, the edit
            is not made, and what was put down is to be taken back.
    """

    def __init__(
        self,
        context: EditContext,
        edits: LiveEdits,
        page_edits: int,
        prepare: Callable[[], None] = lambda: None,
        put_down: Callable[[Written], None] = lambda _: None,
        all_or_nothing: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._context, self._edits, self._page_edits = context, edits, page_edits
        self.leaving: frozenset[int] = frozenset()
        """Pages whose edits, taught again, go to others."""
        self._before, self._put_down, self._all_or_nothing = prepare, put_down, all_or_nothing
        self._fresh = set[int]()

    def prepare(self, edit: Edit, recipe: Recipe) -> Prepared:
        """An edit with its token rows. ValueError where it cannot be learned."""
        context = self._context
        if context.layer.code is not None:
            require_weight(context.tokenizer, context.layer.code, (edit.prompt, *edit.paraphrases))
            about(context.tokenizer, context.layer.code, edit)
        return edit, context.rows(
            edit, recipe.prefixes, recipe.rewordings, recipe.tokens, recipe.stop, recipe.chat, recipe.questions
        )

    def require_room(self, edits: Iterable[Edit]) -> None:
        """StoreFullError where the edits with new prompts do not all fit."""
        store = self._context.layer.store
        new = {(edit.bank, edit.prompt) for edit in edits if self._edits.id_of(edit.prompt, edit.bank) is None}
        if store.max_edits is not None and len(store) + len(new) > store.max_edits:
            raise StoreFullError(
                f"the store holds {len(store)} of max_edits = {store.max_edits}, {len(new)} more do not fit"
            )

    def stream(self, prepared: Iterable[Prepared], recipe: Recipe) -> Iterator[EditResult]:
        """Learns edits as they come, `recipe.batch` at a time; what was yielded is in the memory."""
        layer = self._context.layer
        for batch in _batches(prepared, lambda rows: self._batch_size(rows, recipe)):
            outcome: list[_Outcome] = []
            written = -1
            for index in range(len(batch)):
                # tensors made in inference mode could not be changed outside of it
                with layer.learning(), torch.inference_mode(False):
                    if not outcome or written != layer.written:  # another has written since these were learned
                        outcome = self._learn(batch[index:], recipe)
                    result = self._write(outcome.pop(0), recipe)
                    written = layer.written
                yield result

    def _learn(self, prepared: list[Prepared], recipe: Recipe) -> list[_Outcome]:
        """Learns edits together, on top of what the memory holds, with their codes: as many as go to one page."""
        self.require_room(edit for edit, _ in prepared)
        lives = [self._lives(edit) for edit, _ in prepared]
        first = prepared[0][0]
        page, room = self._page(lives[0], first)
        several = zip(lives[:room], prepared, strict=False)
        together = [where in (lives[0], page) and edit.bank == first.bank for where, (edit, _) in several]
        prepared = prepared[: together.index(False) if False in together else room]
        if recipe.damping:
            self.update_interference(recipe, page)
            self._leave_out([edit for edit, _ in prepared], page)
        started = time.perf_counter()
        learn = {"paper": paper.learn, "fast": fast.learn}[recipe.method]
        codes = [self._codes(edit) for edit, _ in prepared]
        outcome = learn(
            self._context, [self._request(*one, recipe) for one in zip(prepared, codes, strict=True)], recipe, page
        )
        seconds = (time.perf_counter() - started) / len(prepared)
        return [_Outcome(*one, page, seconds) for one in zip(outcome, codes, strict=True)]

    def _lives(self, edit: Edit) -> int | None:
        """The page of the edit that this one replaces; None where it replaces none, or one that leaves its page."""
        edit_id = self._edits.id_of(edit.prompt, edit.bank)
        page = -1 if edit_id is None else int(self._context.layer.store.page[edit_id])
        return None if page < 0 or page in self.leaving else page

    def _page(self, lives: int | None, edit: Edit) -> tuple[int, int]:
        """The page that an edit is written to, and how many edits may go there together; see `_lives`."""
        if lives is not None:
            return lives, LARGEST_BATCH
        layer = self._context.layer
        taken = {int(layer.store.page[one]) for one in self._edits.namesakes(edit)}  # by the very columns of this one
        return pages.choose(layer, self._page_edits, self.forget, self.leaving | taken, edit.bank)

    def forget(self, page: int) -> None:
        """Counts nothing of a page any more, for the interference."""
        self._fresh.add(page)
        self._context.interference.forget(page)
        self._edits.uncount(page)

    def forget_all(self, page_edits: int) -> None:
        """Counts nothing any more: the memory holds other edits, on other pages, that take so many."""
        self._context.interference = self._context.interference.empty()
        self._edits.uncount_all()
        self._fresh.clear()
        self._page_edits = page_edits

    def _request(self, prepared: Prepared, codes: CodeRows | None, recipe: Recipe) -> Request:
        edit, rows = prepared
        if recipe.method != "fast":
            return Request(edit, rows)
        quiet = list(edit.keep)
        if codes is not None:  # a prompt that is kept, and follows no edit, need not be learned
            quiet = [text for text in codes.quiet if text in edit.keep]
            quiet += [text for text in codes.quiet if text not in quiet][: recipe.quiet]
        return Request(edit, rows, [Row(ids, len(ids)) for ids in map(self._ids, quiet)], recipe.boundary)

    def _ids(self, prompt: str) -> list[int]:
        return prompt_ids(self._context.tokenizer, prompt)

    def _write(self, outcome: _Outcome, recipe: Recipe) -> EditResult:
        """Commits one learned edit, and counts what it reads."""
        learned, _, page, _ = outcome
        inputs = learned.reads() if recipe.damping else None
        alone = not self._context.layer.further  # what further layers read is known once it is written
        reads = Reads.of(inputs, recipe.stop) if inputs is not None and alone else None
        result = self._commit(outcome, recipe, reads)
        if inputs is not None:
            self._take_out_gone(page)  # the edit that this one replaced
            every = [reads] if reads else next(self._reads([(learned.edit, recipe.stop, learned.columns)]))
            self._count(page, result.edit_id, learned.columns, every)
            self._keep_while_room(page)
        return result

    def _count(self, page: int, edit_id: int, columns: torch.Tensor, reads: Sequence[Reads]) -> None:
        """Counts what an edit reads in each layer; keeps it where there is one layer, and it is short."""
        layer = self._context.layer
        for interference, own in zip(self._context.interference.of(page), reads, strict=True):
            interference.add(layer.store.width, columns, own.inputs.to(columns.device))
        self._edits.count(edit_id, reads[0].stop)
        if not layer.further and reads[0].short(layer):
            self._edits.reads[edit_id] = reads[0]

    def _keep_while_room(self, page: int) -> None:
        if self._full(page):
            self._edits.forget_reads(page)

    def _full(self, page: int) -> bool:
        return self._context.layer.store.written(page) >= self._page_edits

    def update_interference(self, recipe: Recipe, page: int = 0) -> None:
        """Counts what every live edit of a page reads that is not counted yet, and takes out what is no longer live.

        The former are edits of a loaded memory, or of a recipe that counts nothing. Where it is not kept what they
        read, they are read once more, from their texts, with the end token where `recipe` has it.
        """
        store, interference = self._context.layer.store, self._context.interference
        interference.of(page)  # it is the one that is learned on last
        for old in interference.settle(store.width):
            self._edits.uncount(old)
        self._take_out_gone(page)
        new = self._edits.uncounted(page)
        columns = dict(zip(new, mask_columns(store.masks[list(new)], store.k), strict=True)) if new else {}
        known = {one: [self._edits.reads[one]] for one in new if one in self._edits.reads}
        again = self._reads([(edit, recipe.stop, columns[one]) for one, edit in new.items() if one not in known])
        for edit_id in new:
            self._count(page, edit_id, columns[edit_id], known.get(edit_id) or next(again))
        self._keep_while_room(page)

    def _leave_out(self, edits: Iterable[Edit], page: int) -> None:
        """Takes those that these edits replace out of the page's interference: an edit must change what they say.

        Where it is not written after all, they are uncounted, and counted again before the next is learned.
        """
        for edit in edits:
            edit_id = self._edits.id_of(edit.prompt, edit.bank)
            if edit_id is not None:
                self._edits.leave_out(edit_id)
        self._take_out_gone(page)

    def _take_out_gone(self, page: int) -> None:
        """Takes replaced and deleted edits out of a page's interference, as they came in.

        Where it is not kept what they read, they are read once more.
        """
        gone = self._edits.gone.get(page, [])
        again = self._reads([(one.edit, one.stop, one.columns) for one in gone if one.reads is None])
        for one in [*gone]:
            every = [one.reads] if one.reads else next(again)
            for interference, own in zip(self._context.interference.of(page), every, strict=True):
                interference.remove(one.columns, own.inputs.to(one.columns.device))
            del gone[0]  # one at a time: whatever stops this, the others are still to be taken out
        self._edits.gone.pop(page, None)

    def _reads(self, wanted: Sequence[tuple[Edit, bool, torch.Tensor]]) -> Iterator[list[Reads]]:
        """Per edit, whether its row ends in the end token, and its columns: what it reads in each layer, by a pass."""
        for start in range(0, len(wanted), _ROWS_AT_ONCE):
            some = wanted[start : start + _ROWS_AT_ONCE]
            rows = [self._context.rows(edit, stop=stop)[0] for edit, stop, _ in some]
            for (_, stop, columns), inputs in zip(some, inputs_of(self._context, rows), strict=True):
                yield [Reads.of(x[:, columns.long()], stop) for x in inputs]

    def _codes(self, edit: Edit) -> CodeRows | None:
        """The routing codes of an edit; None where masks tell whom a prompt belongs to."""
        context = self._context
        replaced = self._edits.id_of(edit.prompt, edit.bank)
        return code_rows(context.model, context.layer, context.tokenizer, edit, self._edits.beside(edit), replaced)

    def _batch_size(self, rows: list[Row], recipe: Recipe) -> int:
        return recipe.batch if isinstance(recipe.batch, int) else largest_batch(self._context, rows, recipe)

    def _commit(self, outcome: _Outcome, recipe: Recipe, reads: Reads | None) -> EditResult:
        """Writes one learned edit to the memory and the store, or changes nothing at all."""
        learned, codes, page, seconds = outcome
        edit, layer = learned.edit, self._context.layer
        replaced = self._edits.id_of(edit.prompt, edit.bank) is not None
        tokens = self._context.target_tokens(edit, recipe.boundary) if recipe.rest else (0, 0)
        self._before()
        changed = learned.rows()
        with (
            layer.changing(page=page, rows=replaced),
            self._all_or_nothing(),
            layer.memory.changing(page, changed) as memory,
            torch.no_grad(),
            self._edits.put(edit, learned.mask, page, codes) as edit_id,
        ):
            learned.write(memory)
            layer.store.rest_after(edit_id, tokens)
            kept = reads if reads is not None and reads.short(layer) and not self._full(page) else None
            self._put_down(Written(edit_id, changed, page, page in self._fresh, codes, kept))
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
                bank=edit.bank,
            )
        self._fresh.discard(page)
        return result


def _batches(prepared: Iterable[Prepared], size: Callable[[list[Row]], int]) -> Iterator[list[Prepared]]:
    """Lists of up to `size(rows of the first)`; a prompt that comes again begins a new one: it replaces the earlier."""
    batch: list[Prepared] = []
    room = 1
    for edit, rows in prepared:
        if len(batch) == room or any((edit.prompt, edit.bank) == (other.prompt, other.bank) for other, _ in batch):
            yield batch
            batch = []
        if not batch:
            room = size(rows)
        batch.append((edit, rows))
    if batch:
        yield batch
