"""`Upkeep`: what keeps a memory of many edits in order."""

import os
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import torch

from memoir_fast.core import pages
from memoir_fast.core.edit import Edit, require_bank
from memoir_fast.core.edited_model import EditedModel
from memoir_fast.core.scoring import teacher_forced
from memoir_fast.editing.teacher import EditResult, Teacher
from memoir_fast.errors import MemoirError, UnknownEditError
from memoir_fast.io.durable import Durable, current_edits
from memoir_fast.io.merge import Merged, merge
from memoir_fast.io.renewal import state
from memoir_fast.modules import MemoirLinear
from memoir_fast.recipe import Recipe


class Upkeep(EditedModel):
    """A model with a memory whose edits can be found faded, taught again, moved together, and joined by others'."""

    _durable: Durable | None

    @property
    @abstractmethod
    def _teacher(self) -> Teacher: ...

    @abstractmethod
    def _recipe(self, recipe: str | Recipe | None, batch: int | str | None) -> Recipe:
        """What is to be learned by, of what `edit` was given."""

    @abstractmethod
    def edit(
        self,
        edits: str | Edit | Iterable[Edit | tuple[str, str]],
        target: str | None = None,
        *,
        bank: str | None = None,
        recipe: str | Recipe | None = None,
        batch: int | str | None = None,
        progress: bool = True,
    ) -> Any:
        """See `Memoir.edit`."""

    def delete_bank(self, name: str) -> list[int]:
        """Deletes all edits of a bank, at once, as `delete` does one; their ids.

        Raises:
            UnknownEditError: no edit is in it.
            ValueError: the name is empty: edits that are in no bank are deleted one by one.
        """
        if not require_bank(name):
            raise ValueError(
                "delete_bank needs a bank's name, got '': edits that are in none have to be named one by one"
            )
        with self.layer.learning():
            ids = self.edits.in_bank(name)
            if not ids:
                raise UnknownEditError(f"no live edit is in the bank {name!r}")
            self._delete_all(ids)
            return ids

    def _delete_all(self, edit_ids: list[int]) -> None:
        """Deletes live edits, once that is put down; what might keep it from being done comes before."""
        with self.layer.changing(rows=True):
            delete = self.edits.deletion(edit_ids)
            if self._durable is None:
                delete()
                return
            put_down = self._durable.journal.sequence
            try:
                self._durable.deleted(edit_ids)
                delete()
            except BaseException:
                if self._durable.journal.sequence > put_down:  # what stops it may come behind the record
                    delete()
                raise

    def faded(self, batch: int = 8, progress: bool = False, *, among: Iterable[int] | None = None) -> list[int]:
        """Ids of the edits that others have overwritten: the target is no longer what the model says, token by token.

        Edits share columns. The more of them a page holds, the more the early ones fade, and `refresh` teaches those
        again. One forward pass over each prompt and its target, `batch` at a time; with `progress`, a progress bar is
        shown.

        Args:
            batch (int), progress (bool): as above.
            among (iterable of int, optional): ids of the edits to look at. Default: all.

        Raises:
            UnknownEditError: `among` names an edit that is not live.

        Example:
            >>> result = memoir.edit("The capital of France is", "Lyon")
            >>> memoir.faded(among=[result.edit_id])
            []
        """
        with self.layer.learning():
            ids = [*self.edits] if among is None else [*dict.fromkeys(among)]
            for edit_id in ids:
                self.layer.store.require(edit_id)
            edits = [self.edits[edit_id] for edit_id in ids]
            pairs = [(edit.prompt, edit.target) for edit in edits]
            forced = teacher_forced(self, pairs, batch, [edit.bank for edit in edits], progress)
            return [one for one, item in zip(ids, forced, strict=True) if item.predicted != item.target]

    def refresh(
        self,
        *,
        turns: int = 3,
        recipe: str | Recipe | None = None,
        batch: int | str | None = None,
        progress: bool = True,
    ) -> list[EditResult]:
        """Teaches the faded edits again, on top of what the memory holds now; their ids stay.

        Args:
            turns (int): how often to look, since teaching some makes others fade: first at all edits, then at those
                that share a page with one that was taught, since nothing else was written; at all again, where teaching
                changed a threshold or a code row. Default: 3.
            recipe, batch, progress: as in `edit`.

        Returns:
            The last result of each edit that was taught again; none where none had faded.
        """
        results: dict[int, EditResult] = {}
        self._recipe(recipe, batch)  # a mistake is told though nothing may have faded
        with self.layer.learning():  # throughout: an edit that was deleted meanwhile must not come back
            store, looked_at = self.layer.store, [*self.edits]
            for _ in range(turns):
                faded = self.faded(progress=progress, among=looked_at)
                if not faded:
                    break
                calibration, rows = self.calibration, _code_rows(self.layer)
                edits = [self.edits[edit_id] for edit_id in faded]
                taught = self.edit(edits, recipe=recipe, batch=batch, progress=progress)
                results |= {one.edit_id: one for one in taught}
                written = {int(store.page[edit_id]) for edit_id in faded}
                now = _code_rows(self.layer)
                same = self.calibration is calibration and len(now) == len(rows) and all(map(torch.equal, now, rows))
                looked_at = [one for page in sorted(written) for one in store.on_page(page)]
                if not same:  # any prompt may be routed elsewhere
                    looked_at = [*self.edits]
        return list(results.values())

    def compact(
        self, *, recipe: str | Recipe | None = None, batch: int | str | None = None, progress: bool = True
    ) -> list[EditResult]:
        """Fills pages up, and takes off what deleted edits left: the edits of such pages are taught again on others.

        Pages that hold what deleted edits wrote are taken apart, and half empty ones, where there are several. Ids
        stay. An interrupt leaves every edit whole, where it was or where it goes. A folder that was opened is saved at
        the end, so that what was taken off is not in its files either.

        Args:
            recipe, batch, progress: as in `edit`.

        Returns:
            The results of the edits that were taught again; none where all pages are full and without residue.

        Raises:
            CheckpointError: the folder that was opened cannot be written. Each edit is where its journal says.
        """
        assert self.config.page_edits is not None
        with self.layer.learning(), torch.inference_mode(False):
            leaving = pages.loose(self.layer, self.config.page_edits)
            store, memory = self.layer.store, self.layer.memory
            moving = [self.edits[edit_id] for page in leaving for edit_id in store.on_page(page)]
            self._teacher.leaving = frozenset(leaving)
            try:
                results = self.edit(moving, recipe=recipe, batch=batch, progress=progress)
            finally:
                self._teacher.leaving = frozenset()
                for page in leaving:
                    if not store.on_page(page):
                        pages.empty(self.layer, page)
                        self._teacher.forget(page)
                        if len(memory.numbers) > 1:
                            memory.close(page)
            if leaving and self._durable is not None:
                self._durable.snapshot()
            return results

    def merge(self, folder: str | os.PathLike, prefer: str = "other", **hub: Any) -> Merged:
        """Takes over the edits of a saved memory of the same model, with their pages and without teaching them again.

        Args:
            folder (str | PathLike), **hub: as in `from_pretrained`.
            prefer (str): whose edit wins where both have a prompt with different targets: "other", the folder's, or
                "this". Default: "other".

        Raises:
            CheckpointError: the folder holds no memory that can be read, or an edit longer than the model's context.
            WrongModelError: it belongs to another base model.
            MemoirError: its codes or columns mean something else here, and its edits have to be taught; or its journal
                has records that its snapshot lacks.
            StoreFullError: there is no room for its edits or pages.

        All of them are taken over or, whatever stops it, none: the memory is then as before, to the bit. A memory that
        was opened is saved with them, or is what its folder says.
        """
        with self.layer.learning():
            saved, _, records = current_edits(folder, **hub)
            if records:
                raise MemoirError(
                    f"the journal of {folder} has {records} records that its snapshot lacks: open that memory with "
                    "Memoir.open, and save it to the same folder, before it is merged (memoir compact does both)"
                )
            before = state(self)
            try:
                if self._durable is None:
                    return merge(self, saved, prefer)
                return self._durable.merge(saved, prefer, str(folder))
            finally:
                if state(self) != before:
                    self._forget_learning()

    def _forget_learning(self) -> None:
        """What is known of the memory for learning, which may hold other edits now, is forgotten."""
        assert self.config.page_edits is not None
        self._teacher.forget_all(self.config.page_edits)


def _code_rows(layer: MemoirLinear) -> list[torch.Tensor]:
    """The code rows with their thresholds, by edit: in the store, one that is taught again goes behind the others.

    Empty where masks route.
    """
    if layer.codes is None:
        return []
    found = layer.codes.state()
    order = found["owner"].sort(stable=True).indices
    return [one[order] for one in found.values()]
