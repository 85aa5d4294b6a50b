"""Takes the edits of a saved memory into another of the same base model, without teaching them again."""

from dataclasses import dataclass
from typing import Any

import torch

from memoir_fast.core.edit import Edit
from memoir_fast.core.edited_model import EditedModel
from memoir_fast.errors import MemoirError, StoreFullError
from memoir_fast.io import codes, reads
from memoir_fast.io.checkpoint import SavedMemory
from memoir_fast.io.edit_texts import require_fit
from memoir_fast.io.fingerprint import require_same_model
from memoir_fast.io.mapped import pieces

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
        CheckpointError: an edit of it is longer than the model's context.
        WrongModelError: it belongs to another base model.
        MemoirError: it is of another k, seed, routing or routing code: its edits have to be taught.
        StoreFullError: more edits or pages than `max_edits`, `max_pages`.
        ValueError: `prefer` is neither.
    """
    if prefer not in PREFER:
        raise ValueError(f"prefer must be one of {', '.join(PREFER)}, got {prefer!r}")
    require_same_model(saved.folder, saved.fingerprint, memoir.model)
    _require_alike(memoir, saved)
    require_fit(saved.folder, saved.edits, memoir.model, memoir.tokenizer)
    same, conflicts, wanted, new = [], [], [], 0
    for edit_id, edit in saved.edits.items():
        own = memoir.edits.id_of(edit.prompt, edit.bank)
        if own is None:
            wanted.append(edit_id)
            new += 1
        elif memoir.edits[own].target == edit.target:
            same.append(own)
        else:
            conflicts.append((own, edit))
            if prefer == "other":
                wanted.append(edit_id)
    lives = saved.tensors.get("page", torch.zeros(len(saved.tensors["masks"]), dtype=torch.int32))[wanted]
    pages = lives.unique().tolist()
    _require_room(memoir, new, len(pages))
    found = [(memoir.edits[own], edit) for own, edit in conflicts]
    layer, replaced = memoir.layer, {own for own, _ in conflicts} if prefer == "other" else set[int]()
    read = reads.read(saved.tensors, layer)
    with (
        layer.learning(),
        torch.inference_mode(False),
        layer.changing(rows=True),
        memoir.edits.all_or_nothing(replaced),
    ):
        number = _take_pages(memoir, saved, pages)
        added = _take(memoir, saved, wanted, number[lives.long()])
        memoir.edits.reads |= {here: read[there] for there, here in zip(wanted, added, strict=True) if there in read}
    return Merged(added, same, found)


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


def _require_room(memoir: EditedModel, new: int, pages: int) -> None:
    store, memory = memoir.layer.store, memoir.layer.memory
    if store.max_edits is not None and len(store) + new > store.max_edits:
        raise StoreFullError(f"the store holds {len(store)} of max_edits = {store.max_edits}, {new} more do not fit")
    if memory.max_pages is not None and len(memory.numbers) + pages > memory.max_pages:
        raise StoreFullError(
            f"the memory has {len(memory.numbers)} of max_pages = {memory.max_pages}, {pages} more do not fit"
        )


def _take_pages(memoir: EditedModel, saved: SavedMemory, pages: list[int]) -> torch.Tensor:
    """Opens a page for each of some of the saved memory, and fills it; the new numbers int32 by the old ones."""
    memory, width = memoir.layer.memory, memoir.layer.in_features
    rows, done = saved.tensors["memory_rows"], 0
    number = torch.full((1 + max([*pages, int(rows.max()) // width if len(rows) else 0]),), -1, dtype=torch.int32)
    for page in pages:
        number[page] = memory.open()
    for values in pieces(saved.tensors["memory_values"]):
        some = rows[done : done + len(values)].long()
        there = number[some // width]
        own = there >= 0
        memory.take(some[own] % width + width * there[own], values[own])
        done += len(values)
    return number


def _take(memoir: EditedModel, saved: SavedMemory, wanted: list[int], page: torch.Tensor) -> list[int]:
    """Adds edits with their rows as they are, on pages int32 [wanted]; their ids here."""
    tensors, store = saved.tensors, memoir.layer.store
    device, place = store.masks.device, torch.tensor(wanted, dtype=torch.int64)
    own, count = None, torch.zeros(0, dtype=torch.int64)
    if "rows_owner" in tensors:
        order = torch.full((len(tensors["masks"]),), len(wanted))
        order[place] = torch.arange(len(wanted))
        order, rows = order[tensors["rows_owner"].long()].sort(stable=True)
        count = order.bincount(minlength=len(wanted))[: len(wanted)]
        own = codes.Rows.of(tensors, "rows", device, rows[: count.sum()])
    edits = [saved.edits[edit_id] for edit_id in wanted]
    found = memoir.edits.put_all(edits, tensors["masks"][place].to(device), page.to(device), own, count.tolist())
    here = torch.tensor(found, dtype=torch.int64, device=device)
    if "min_overlap" in tensors:
        store.min_overlap[here] = tensors["min_overlap"][place].to(device)
    tokens = tensors["target_tokens"][place] if "target_tokens" in tensors else torch.zeros((len(place), 2)).int()
    store.target_tokens[here] = tokens.to(device)
    store.rests = store.rests or bool(tokens.any())
    return found
