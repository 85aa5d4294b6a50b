"""Takes the edits of a saved memory into another of the same base model, without teaching them again."""

from dataclasses import dataclass
from typing import Any

import torch

from memoir_fast.core.edit import Edit
from memoir_fast.core.edited_model import EditedModel
from memoir_fast.errors import MemoirError, StoreFullError
from memoir_fast.io import codes, reads
from memoir_fast.io.checkpoint import SavedMemory
from memoir_fast.io.fingerprint import require_same_model

PREFER = ("other", "this")


@dataclass(frozen=True)
class Merged:
    """What became of a merge."""

    added: list[int]
    """Ids that the other memory's edits have now; one that wins over an edit here has its id."""
    same: list[int]
    """Ids of edits, here, that the other memory had with the same target; the ones here stay."""
    conflicts: list[tuple[Edit, Edit]]
    """Edits, here and there, of one prompt and bank with two targets."""


def merge(memoir: EditedModel, saved: SavedMemory, prefer: str = "other") -> Merged:
    """Takes over the pages of a saved memory, and with them its edits, codes and thresholds; all of them or nothing.

    Args:
        memoir (EditedModel): what they are added to; nobody else may be changing it.
        saved (SavedMemory): what `checkpoint.read` gave.
        prefer (str): which edit wins where both memories have the same prompt with another target: "other", that of
            the saved memory, or "this". Default: "other".

    Raises:
        WrongModelError: it belongs to another base model.
        MemoirError: it is of another k, seed, routing or routing code: its edits have to be taught.
        StoreFullError: more edits or pages than `max_edits`, `max_pages`.
        ValueError: `prefer` is neither.
    """
    if prefer not in PREFER:
        raise ValueError(f"prefer must be one of {', '.join(PREFER)}, got {prefer!r}")
    require_same_model(saved.folder, saved.fingerprint, memoir.model)
    _require_alike(memoir, saved)
    same, conflicts, wanted = [], [], []
    for edit_id, edit in saved.edits.items():
        own = memoir.edits.id_of(edit.prompt, edit.bank)
        if own is None:
            wanted.append(edit_id)
        elif memoir.edits[own].target == edit.target:
            same.append(own)
        else:
            conflicts.append((memoir.edits[own], edit))
            if prefer == "other":
                wanted.append(edit_id)
    _require_room(memoir, saved, wanted)
    layer = memoir.layer
    read = reads.read(saved.tensors, layer)
    with layer.learning(), torch.inference_mode(False), layer.changing(rows=True):
        pages = _take_pages(memoir, saved, wanted)
        added = [_take(memoir, saved, edit_id, pages) for edit_id in wanted]
        memoir.edits.reads |= {new: read[old] for old, new in zip(wanted, added, strict=True) if old in read}
    return Merged(added, same, conflicts)


def _require_alike(memoir: EditedModel, saved: SavedMemory) -> None:
    """MemoirError where the other memory's masks or codes mean something else here."""
    layer, tensors = memoir.layer, saved.tensors
    names = ("routing", "layer", "further")
    here: dict[str, Any] = {"k": layer.k, **{name: getattr(memoir.config, name) for name in names}}
    there = {"k": saved.config.k, **{name: getattr(saved.config, name) for name in names}}
    different = [f"{name}: {here[name]} here, {there[name]} there" for name in here if here[name] != there[name]]
    ours = {"permutation": layer.permutation, **codes.tensors(layer)}
    if memoir.config.routing == "paper":
        ours["mu"] = layer.mu
    for name, tensor in ours.items():
        if not name.startswith("rows_") and not torch.equal(tensor.cpu(), tensors.get(name, torch.empty(0))):
            different.append(f"{name} differs")
    if "reads" in tensors and tensors["reads"].shape[1] != layer.k:
        different.append(f"reads: {layer.k} columns here, {tensors['reads'].shape[1]} there")
    if memoir.config.routing == "early" and codes.values(layer) != saved.routing:
        different.append("how routing codes are made differs")
    if different:
        raise MemoirError(
            f"{saved.folder} cannot be merged without teaching its edits ({'; '.join(different)}): "
            "teach them with memoir.edit, from their texts"
        )


def _require_room(memoir: EditedModel, saved: SavedMemory, wanted: list[int]) -> None:
    store, memory = memoir.layer.store, memoir.layer.memory
    if store.max_edits is not None and len(store) + len(wanted) > store.max_edits:
        raise StoreFullError(
            f"the store holds {len(store)} of max_edits = {store.max_edits}, {len(wanted)} more do not fit"
        )
    needed = len(_pages_of(saved, wanted))
    if memory.max_pages is not None and len(memory.numbers) + needed > memory.max_pages:
        raise StoreFullError(
            f"the memory has {len(memory.numbers)} of max_pages = {memory.max_pages}, {needed} more do not fit"
        )


def _pages_of(saved: SavedMemory, wanted: list[int]) -> list[int]:
    place = saved.tensors.get("page")
    return sorted({0 if place is None else int(place[edit_id]) for edit_id in wanted})


def _take_pages(memoir: EditedModel, saved: SavedMemory, wanted: list[int]) -> dict[int, int]:
    """Opens a page for each of the saved memory that a wanted edit lives on, and fills it; the new numbers."""
    memory, width = memoir.layer.memory, memoir.layer.in_features
    rows, values = saved.tensors["memory_rows"].long(), saved.tensors["memory_values"]
    found = {}
    for page in _pages_of(saved, wanted):
        found[page] = memory.open()
        own = rows // width == page
        memory.take(rows[own] % width + width * found[page], values[own])
    return found


def _take(memoir: EditedModel, saved: SavedMemory, edit_id: int, pages: dict[int, int]) -> int:
    """Adds one edit with its rows as they are; its id here."""
    tensors, store = saved.tensors, memoir.layer.store
    device = store.masks.device
    place = tensors.get("page")
    page = pages[0 if place is None else int(place[edit_id])]
    own = None
    if "rows_owner" in tensors:
        rows = tensors["rows_owner"] == edit_id
        own = codes.Rows(*(tensors[f"rows_{name}"][rows].to(device) for name in codes.Rows._fields))
    with memoir.edits.put(saved.edits[edit_id], tensors["masks"][edit_id].to(device), page, own) as new:
        if "min_overlap" in tensors:
            store.set_min_overlap(int(tensors["min_overlap"][edit_id]), new)
        if "target_tokens" in tensors:
            store.rest_after(new, tuple(tensors["target_tokens"][edit_id].tolist()))
    return new
