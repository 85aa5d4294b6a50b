"""`LiveEdits`: which edits a memory holds, and the only way to add, replace and delete one."""

import copy
import dataclasses
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import torch

from memoir_fast.core.edit import Edit
from memoir_fast.core.prompts import Prompts
from memoir_fast.core.reads import Reads
from memoir_fast.modules import MemoirLinear, banks
from memoir_fast.ops import mask_columns


class Gone(NamedTuple):
    """A replaced or deleted edit whose inputs the interference still counts."""

    edit: Edit
    stop: bool
    """Its rows were closed by the end token."""
    columns: torch.Tensor
    """int32 [k], those that it had."""
    page: int
    """Where they are."""
    reads: Reads | None = None
    """What was counted of it, where that is kept."""


class _Before(NamedTuple):
    """A live edit that another is about to replace."""

    edit: Edit
    mask: torch.Tensor
    page: int
    tokens: torch.Tensor
    columns: torch.Tensor


class Codes(Protocol):
    """Routing codes of one edit, n rows; see `CodeStore.add`."""

    @property
    def codes(self) -> torch.Tensor:
        """int32 [n, W]."""

    @property
    def min_overlap(self) -> torch.Tensor:
        """int32 [n], thresholds in bits."""

    @property
    def room(self) -> torch.Tensor:
        """int32 [n], up to where a threshold may be raised, in bits; 0 for rows of prompts that are kept."""

    @property
    def names(self) -> torch.Tensor | None:
        """int32 [n, P, T], the subject that prompts must name; None: none has any."""


class LiveEdits(Mapping[int, Edit]):
    """The live edits by id, in the order in which they came; the store's rows change through it alone.

    It also knows whose inputs the interference counts (see `editing.interference`): of an edit that is replaced or
    deleted, what was counted must be taken out as it was added, with the columns and the end token of that time. So
    `gone` keeps these, 4 * k bytes each, until it is done.

    Args:
        layer (MemoirLinear): its store has a row for each edit.
    """

    content = ("_edits", "_ids", "_counted", "gone", "reads")
    """What is another, where the layer holds other edits."""

    def __init__(self, layer: MemoirLinear) -> None:
        self._layer = layer  # not its store: a copied layer has another
        self._edits: dict[int, Edit] = {}
        self._ids: dict[str, dict[str, int]] = {}  # by prompt and bank
        self._counted: dict[int, bool] = {}  # by id, with or without the end token
        self.gone: dict[int, list[Gone]] = {}
        """By the page where they were."""
        self.reads: dict[int, Reads] = {}
        """What edits read, by their ids; of those on pages that take more, where it is known and short."""

    def __getitem__(self, edit_id: int) -> Edit:
        return self._edits[edit_id]

    def __iter__(self) -> Iterator[int]:
        return iter(self._edits)

    def __len__(self) -> int:
        return len(self._edits)

    def __repr__(self) -> str:
        return repr(self._edits)

    def id_of(self, prompt: str, bank: str = "") -> int | None:
        """The live edit of that prompt in a bank, "" for those in none."""
        return self._ids.get(prompt, {}).get(bank)

    def namesakes(self, edit: Edit) -> list[int]:
        """The live edits of the same prompt in other banks."""
        return [one for bank, one in self._ids.get(edit.prompt, {}).items() if bank != edit.bank]

    def beside(self, edit: Edit) -> Prompts:
        """The prompts that an edit's thresholds may be made of: of those in other banks, they would tell."""
        store = self._layer.store
        chosen = store.alive
        if store.bank is not None:
            bank = store.bank[: len(store)].cpu()
            chosen &= (bank == 0) | (bank == store.bank_numbers.get(edit.bank, 0))
        chosen[self._of_prompt(edit.prompt)] = False
        return Prompts(self, chosen, self._of_prompt)

    def _of_prompt(self, prompt: str) -> list[int]:
        return [*self._ids.get(prompt, {}).values()]

    def in_bank(self, bank: str) -> list[int]:
        """Ids of the live edits of a bank, "" for those in none."""
        return [edit_id for edit_id, edit in self._edits.items() if edit.bank == bank]

    @contextmanager
    def put(self, edit: Edit, mask: torch.Tensor, page: int = 0, codes: Codes | None = None) -> Iterator[int]:
        """Adds an edit, or replaces that of the same prompt in its bank, and gives its id.

        All is as before if the block raises.

        Args:
            edit, mask, page: the edit, its mask int32 [W], and the page of memory where its columns are. An edit
                without a time, `taught_at`, gets this moment's.
            codes (Codes, optional): its routing codes, where the layer has a store of such.

        Raises:
            StoreFullError: there is no room; see `MaskStore`.
        """
        store, old = self._layer.store, self.id_of(edit.prompt, edit.bank)
        rows = len(store)
        before = None if old is None else self._before(old)
        rows_of_codes = self._layer.codes
        undo = None if rows_of_codes is None else rows_of_codes.undo_from_here(() if old is None else (old,))
        try:
            if old is None:
                edit_id = store.append(mask, page)
                banks.put(store, edit_id, edit.bank, next(iter(self.namesakes(edit)), None))
            else:
                edit_id = old
                store.replace(edit_id, mask, page)
            self._note(edit_id, _timed(edit))
            first = self._add_codes(edit_id, codes)
            yield edit_id
            if before is not None and self._layer.codes is not None:
                self._layer.codes.remove(edit_id, first)
        except BaseException:
            if undo is not None:
                undo()
            if before is None or old is None:
                store.truncate(rows)
                if rows in self._edits:
                    self._forget(rows)
            else:
                self._edits[old] = before.edit
                store.replace(old, before.mask, before.page)
                store.target_tokens[old] = before.tokens
            raise
        if before is not None:
            self._leave(edit_id, before)

    @contextmanager
    def all_or_nothing(self, replaced: Collection[int]) -> Iterator[None]:
        """Within the block, edits are added, `replaced` ones replaced, and pages opened; all is as before if it raises.

        To the bit, in the layer and here. Nobody else may be reading or changing either.
        """
        layer = self._layer
        undo = [self._undo_from_here(), layer.store.undo_from_here(replaced), layer.memory.undo_from_here()]
        if layer.codes is not None:
            undo.append(layer.codes.undo_from_here(replaced))
        try:
            yield
        except BaseException:
            for one in undo:
                one()
            raise

    def _undo_from_here(self) -> Callable[[], None]:
        kept = {name: copy.copy(getattr(self, name)) for name in self.content}
        kept["_ids"] = {prompt: dict(same) for prompt, same in self._ids.items()}
        kept["gone"] = {page: [*there] for page, there in self.gone.items()}
        return lambda: self.__dict__.update(kept)

    def put_all(
        self,
        edits: Sequence[Edit],
        masks: torch.Tensor,
        page: torch.Tensor,
        codes: Codes | None = None,
        rows: Sequence[int] = (),
    ) -> list[int]:
        """Adds edits of another memory, or replaces those of the same prompts in their banks; their ids.

        Thresholds of edits that are here are raised as `put` does it for each; those of the new ones stay as they are.
        It belongs in `all_or_nothing`.

        Args:
            edits, masks, page: n edits, no two of one prompt and bank; their masks int32 [n, W], and pages int32 [n].
            codes (Codes, optional): their routing codes, those of the first edit first, where the layer has a store of
                such; `rows`: how many each edit has.
        """
        store = self._layer.store
        found = [self.id_of(edit.prompt, edit.bank) for edit in edits]
        new = [place for place, edit_id in enumerate(found) if edit_id is None]
        given = iter(store.extend(masks[new], page=page[new]))
        ids = [next(given) if edit_id is None else edit_id for edit_id in found]
        pages = page.tolist()
        for place, (edit, edit_id) in enumerate(zip(edits, ids, strict=True)):
            if found[place] is None:
                banks.put(store, edit_id, edit.bank, next(iter(self.namesakes(edit)), None))
            else:
                before = self._before(edit_id)
                store.replace(edit_id, masks[place], pages[place])
                self._leave(edit_id, before)
            self._note(edit_id, _timed(edit))
        if self._layer.codes is not None:
            if codes is None:
                raise ValueError("an edit needs routing codes here, got none")
            leads = (codes.room > 0).split([*rows])
            self._raise_for(ids, [own[one] for own, one in zip(codes.codes.split([*rows]), leads, strict=True)])
            self._layer.codes.remove([edit_id for edit_id in found if edit_id is not None])
            owner = torch.tensor(ids, dtype=torch.int32).repeat_interleave(torch.tensor([*rows], dtype=torch.int64))
            self._layer.codes.add(owner.to(codes.codes.device), codes.codes, codes.min_overlap, codes.room, codes.names)
        return ids

    def _raise_for(self, edit_ids: Sequence[int], codes: Sequence[torch.Tensor]) -> None:
        """Raises thresholds of rows that there are for edits that come: one search for all that may raise the same."""
        layer, together = self._layer, defaultdict[tuple[str, int], list[int]](list)
        for place, edit_id in enumerate(edit_ids):
            edit = self._edits[edit_id]
            together[edit.bank, edit_id if self.namesakes(edit) else -1].append(place)
        assert layer.codes is not None
        for places in together.values():
            first = edit_ids[places[0]]
            every = torch.cat([codes[place] for place in places])
            layer.codes.raise_where(every, first, banks.bound(layer.store, first))

    def _add_codes(self, edit_id: int, codes: Codes | None) -> int:
        """Adds an edit's rows behind those that there are, and gives the number of the first."""
        store = self._layer.codes
        if store is None:
            return 0
        if codes is None:
            raise ValueError("an edit needs routing codes here, got none")
        first = len(store)
        store.add(edit_id, codes.codes, codes.min_overlap, codes.room, codes.names)
        leads = codes.codes[codes.room > 0]
        store.raise_where(leads, edit_id, banks.bound(self._layer.store, edit_id))
        return first

    def _note(self, edit_id: int, edit: Edit) -> None:
        self._edits[edit_id] = edit
        self._ids.setdefault(edit.prompt, {})[edit.bank] = edit_id

    def _forget(self, edit_id: int) -> None:
        edit = self._edits[edit_id]
        same = self._ids.get(edit.prompt, {})
        same.pop(edit.bank, None)
        if not same:
            self._ids.pop(edit.prompt, None)
        del self._edits[edit_id]

    def extend(self, edits: Sequence[Edit], masks: torch.Tensor) -> range:
        """Adds many edits without a bank whose prompts are new, with masks int32 [n, W]; their ids.

        ValueError where a prompt comes twice or is there already, an edit is in a bank, or the layer routes by codes,
        of which each edit needs its own; nothing is then added.
        """
        if self._layer.codes is not None:
            raise ValueError("many edits at once have masks alone: they need routing='paper'")
        prompts = {edit.prompt for edit in edits if not edit.bank}
        if len(prompts) < len(edits) or not prompts.isdisjoint(self._ids) or len(masks) != len(edits):
            raise ValueError(f"{len(edits)} edits with new prompts and as many masks were expected, got {len(masks)}")
        ids = self._layer.store.extend(masks)
        for edit_id, edit in zip(ids, edits, strict=True):
            self._note(edit_id, _timed(edit))
        return ids

    def delete(self, edit_id: int) -> None:
        """The edit matches nothing from now on. UnknownEditError where it is not live."""
        self.deletion([edit_id])()

    def deletion(self, edit_ids: Sequence[int]) -> Callable[[], None]:
        """What deletes edits; once begun, all of them, also where an interrupt comes. A second call does what is left.

        UnknownEditError: one is not live.
        """
        for edit_id in edit_ids:
            self._layer.store.require(edit_id)
        gone = {edit_id: self._before(edit_id) for edit_id in edit_ids}

        def delete() -> None:
            try:
                self._delete(gone)
            except BaseException:
                self._delete(gone)
                raise

        return delete

    def _delete(self, gone: Mapping[int, _Before]) -> None:
        """Deletes what is still there of edits."""
        store, codes = self._layer.store, self._layer.codes
        for edit_id, before in gone.items():
            if store.holds(edit_id):
                store.delete(edit_id)
            if edit_id in self._edits:
                self._forget(edit_id)
            self._leave(edit_id, before)
        if codes is not None:
            codes.remove(gone.keys())

    def restore(self, edits: Mapping[int, Edit]) -> None:
        """Takes the saved edits of a store that was filled with their rows."""
        self._edits, self._ids, self.reads = {}, {}, {}
        for edit_id, edit in edits.items():
            self._note(edit_id, edit)
        if any(edit.bank for edit in edits.values()):
            of = {edit_id: edit.bank for edit_id, edit in edits.items()}
            first = {prompt: next(iter(same.values())) for prompt, same in self._ids.items()}
            banks.restore(self._layer.store, of, {edit_id: first[edit.prompt] for edit_id, edit in edits.items()})

    def uncounted(self, page: int) -> dict[int, Edit]:
        """The live edits of a page that the interference does not count yet, as those of a loaded memory."""
        if len(self._counted) == len(self._edits):
            return {}
        there = self._layer.store.on_page(page)
        return {edit_id: self._edits[edit_id] for edit_id in there if edit_id not in self._counted}

    def count(self, edit_id: int, stop: bool) -> None:
        """Notes that the interference counts an edit, by rows with or without the end token."""
        self._counted[edit_id] = stop

    def uncount_all(self) -> None:
        """Notes that nothing is counted any more."""
        self._counted, self.gone = {}, {}

    def uncount(self, page: int) -> None:
        """Notes that nothing of a page is counted any more."""
        for edit_id in self._layer.store.on_page(page):
            self._counted.pop(edit_id, None)
        self.gone.pop(page, None)

    def leave_out(self, edit_id: int) -> None:
        """Notes that an edit shall not be counted while what replaces it is learned: it is `gone`, though it lives."""
        reads = self.reads.get(edit_id)
        self._leave(edit_id, self._before(edit_id))
        if reads is not None:
            self.reads[edit_id] = reads  # it is counted again where it is not replaced after all

    def forget_reads(self, page: int) -> None:
        """Lets go what the edits of a page read: it is full."""
        for edit_id in self._layer.store.on_page(page):
            self.reads.pop(edit_id, None)

    def _before(self, edit_id: int) -> _Before:
        store = self._layer.store
        page, mask = int(store.page[edit_id]), store.masks[edit_id].clone()
        columns = mask_columns(mask[None], store.k)[0]
        return _Before(self._edits[edit_id], mask, page, store.target_tokens[edit_id].clone(), columns)

    def _leave(self, edit_id: int, before: _Before) -> None:
        reads = self.reads.pop(edit_id, None)
        if edit_id in self._counted:
            gone = Gone(before.edit, self._counted.pop(edit_id), before.columns, before.page, reads)
            self.gone.setdefault(before.page, []).append(gone)


def _timed(edit: Edit) -> Edit:
    """An edit with the time at which it was first written."""
    return edit if edit.taught_at is not None else dataclasses.replace(edit, taught_at=time.time())
