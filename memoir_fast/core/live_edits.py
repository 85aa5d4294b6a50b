"""`LiveEdits`: which edits a memory holds, and the only way to add, replace and delete one."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import torch

from memoir_fast.core.edit import Edit
from memoir_fast.modules import MemoirLinear


class Gone(NamedTuple):
    """A replaced or deleted edit whose inputs the interference still counts."""

    edit: Edit
    stop: bool
    """Its rows were closed by the end token."""
    columns: torch.Tensor
    """int32 [k], those that it had."""


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
        """int32 [n], up to where a threshold may be raised, in bits."""


class LiveEdits(Mapping[int, Edit]):
    """The live edits by id, in the order in which they came; the store's rows change through it alone.

    It also knows whose inputs the interference counts (see `editing.interference`): of an edit that is replaced or
    deleted, what was counted must be taken out as it was added, with the columns and the end token of that time. So
    `gone` keeps these, 4 * k bytes each, until it is done.

    Args:
        layer (MemoirLinear): its store has a row for each edit.
    """

    def __init__(self, layer: MemoirLinear) -> None:
        self._layer = layer  # not its store: a copied layer has another
        self._edits: dict[int, Edit] = {}
        self._ids: dict[str, int] = {}
        self._counted: dict[int, bool] = {}  # by id, with or without the end token
        self.gone: list[Gone] = []

    def __getitem__(self, edit_id: int) -> Edit:
        return self._edits[edit_id]

    def __iter__(self) -> Iterator[int]:
        return iter(self._edits)

    def __len__(self) -> int:
        return len(self._edits)

    def __repr__(self) -> str:
        return repr(self._edits)

    def id_of(self, prompt: str) -> int | None:
        """The live edit of that prompt."""
        return self._ids.get(prompt)

    @contextmanager
    def put(self, edit: Edit, mask: torch.Tensor, columns: torch.Tensor, codes: Codes | None = None) -> Iterator[int]:
        """Adds an edit, or replaces that of the same prompt, and gives its id; all is as before if the block raises.

        Args:
            edit, mask, columns: the edit, its mask int32 [W] and its columns int32 [k].
            codes (Codes, optional): its routing codes, where the layer has a store of such.

        Raises:
            StoreFullError: there is no room; see `MaskStore`.
        """
        store, old = self._layer.store, self._ids.get(edit.prompt)
        rows = len(store)
        kept = ("masks", "columns", "target_tokens")
        before = None if old is None else (self._edits[old], [getattr(store, name)[old].clone() for name in kept])
        undo = self._undo_codes()
        try:
            if old is None:
                edit_id = store.append(mask, columns)
            else:
                edit_id = old
                store.replace(edit_id, mask, columns)
            self._edits[edit_id], self._ids[edit.prompt] = edit, edit_id
            first = self._add_codes(edit_id, codes)
            yield edit_id
        except BaseException:
            undo()
            if before is None or old is None:
                store.truncate(rows)
                self._edits.pop(rows, None)
                self._ids.pop(edit.prompt, None)
            else:
                self._edits[old] = before[0]
                mask, columns, tokens = before[1]
                store.replace(old, mask, columns)
                store.target_tokens[old] = tokens
            raise
        if before is not None:
            if self._layer.codes is not None:
                self._layer.codes.remove(edit_id, first)
            self._leave(edit_id, before[0], before[1][1])

    def _add_codes(self, edit_id: int, codes: Codes | None) -> int:
        """Adds an edit's rows behind those that there are, and gives the number of the first."""
        store = self._layer.codes
        if store is None:
            return 0
        if codes is None:
            raise ValueError("an edit needs routing codes here, got none")
        first = len(store)
        store.add(edit_id, codes.codes, codes.min_overlap, codes.room)
        store.raise_where(codes.codes, edit_id)
        return first

    def _undo_codes(self) -> Callable[[], None]:
        store = self._layer.codes
        if store is None:
            return lambda: None
        rows, least = len(store), store.min_overlap.clone()

        def undo() -> None:
            store.truncate(rows)
            store.min_overlap[: len(least)] = least

        return undo

    def extend(self, edits: Sequence[Edit], masks: torch.Tensor, columns: torch.Tensor) -> range:
        """Adds many edits whose prompts are new, with masks int32 [n, W] and columns int32 [n, k]; their ids.

        ValueError where a prompt comes twice or is there already, or the layer routes by codes, of which each edit
        needs its own; nothing is then added.
        """
        if self._layer.codes is not None:
            raise ValueError("many edits at once have masks alone: they need routing='paper'")
        prompts = {edit.prompt for edit in edits}
        if len(prompts) < len(edits) or not prompts.isdisjoint(self._ids) or len(masks) != len(edits):
            raise ValueError(f"{len(edits)} edits with new prompts and as many masks were expected, got {len(masks)}")
        ids = self._layer.store.extend(masks, columns)
        self._edits.update(zip(ids, edits, strict=True))
        self._ids.update({edit.prompt: edit_id for edit_id, edit in zip(ids, edits, strict=True)})
        return ids

    def delete(self, edit_id: int) -> None:
        """The edit matches nothing from now on. UnknownEditError where it is not live."""
        store = self._layer.store
        store.delete(edit_id)
        if self._layer.codes is not None:
            self._layer.codes.remove(edit_id)
        edit = self._edits.pop(edit_id)
        self._ids.pop(edit.prompt)
        self._leave(edit_id, edit, store.columns[edit_id].clone())

    def restore(self, edits: Mapping[int, Edit]) -> None:
        """Takes the saved edits of a store that was filled with their rows."""
        self._edits = dict(edits)
        self._ids = {edit.prompt: edit_id for edit_id, edit in edits.items()}

    @property
    def uncounted(self) -> dict[int, Edit]:
        """The live edits that the interference does not count yet: those of a loaded memory, or of another recipe."""
        if len(self._counted) == len(self._edits):
            return {}
        return {edit_id: edit for edit_id, edit in self._edits.items() if edit_id not in self._counted}

    def count(self, edit_id: int, stop: bool) -> None:
        """Notes that the interference counts an edit, by rows with or without the end token."""
        self._counted[edit_id] = stop

    def _leave(self, edit_id: int, edit: Edit, columns: torch.Tensor) -> None:
        if edit_id in self._counted:
            self.gone.append(Gone(edit, self._counted.pop(edit_id), columns))
