"""`LiveEdits`: which edits a memory holds, and the only way to add, replace and delete one."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

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
    def put(self, edit: Edit, mask: torch.Tensor, columns: torch.Tensor) -> Iterator[int]:
        """Adds an edit, or replaces that of the same prompt, and gives its id; all is as before if the block raises.

        Args:
            edit, mask, columns: the edit, its mask int32 [W] and its columns int32 [k].

        Raises:
            StoreFullError: there is no room; see `MaskStore`.
        """
        store, old = self._layer.store, self._ids.get(edit.prompt)
        rows = len(store)
        before = None if old is None else (self._edits[old], store.masks[old].clone(), store.columns[old].clone())
        try:
            if old is None:
                edit_id = store.append(mask, columns)
            else:
                edit_id = old
                store.replace(edit_id, mask, columns)
            self._edits[edit_id], self._ids[edit.prompt] = edit, edit_id
            yield edit_id
        except BaseException:
            if before is None or old is None:
                store.truncate(rows)
                self._edits.pop(rows, None)
                self._ids.pop(edit.prompt, None)
            else:
                self._edits[old] = before[0]
                store.replace(old, *before[1:])
            raise
        if before is not None:
            self._leave(edit_id, before[0], before[2])

    def extend(self, edits: Sequence[Edit], masks: torch.Tensor, columns: torch.Tensor) -> range:
        """Adds many edits whose prompts are new, with masks int32 [n, W] and columns int32 [n, k]; their ids.

        ValueError where a prompt comes twice or is there already; nothing is then added.
        """
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
