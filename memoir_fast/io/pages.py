"""A memory's pages as tensors, to and from its files."""

from collections.abc import Iterator

import torch

from memoir_fast.io.mapped import pieces
from memoir_fast.io.tensor_file import Parts
from memoir_fast.modules import MemoirLinear


def tensors(layer: MemoirLinear) -> dict[str, torch.Tensor | Parts]:
    """The rows of the residual memory that are not zero, and where each edit lives.

    memory_rows int32 [R], in which row c of page p is p * D + c; memory_values [R, O], by pages, of a memory that does
    not change meanwhile; and page int32 [N], where not all edits live on page 0. Pages are numbered anew, without those
    that hold nothing; -1 is the page of a deleted edit of which nothing is left.
    """
    memory, store, width = layer.memory, layer.store, layer.in_features
    lives = store.page[: len(store)]
    rows, values, kept = [], [], order(layer)
    for number, page in enumerate(kept):
        weight = memory.whole(page)
        filled = weight.ne(0).any(dim=1).nonzero().flatten()
        rows.append(filled.int() + number * width)
        if layer.part is not None:  # which all processes gather together, and one writes
            values.append(weight[filled])
    numbers = torch.full((memory.pages + 1,), -1, dtype=torch.int32, device=lives.device)  # the last is that of page -1
    numbers[kept] = torch.arange(len(kept), dtype=torch.int32, device=lives.device)
    renumbered = numbers[lives.long()]

    def made() -> Iterator[torch.Tensor]:
        for number, (page, filled) in enumerate(zip(kept, rows, strict=True)):
            yield memory.page(page)[filled.long() - number * width]

    shape = sum(map(len, rows)), memory.outputs
    found: dict[str, torch.Tensor | Parts] = {"memory_rows": torch.cat(rows)}
    found["memory_values"] = Parts.of(torch.cat(values)) if values else Parts(memory.table.dtype, shape, made)
    return {**found, "page": renumbered} if bool(renumbered.any()) else found


def order(layer: MemoirLinear) -> list[int]:
    """The pages that a file keeps, in the order of their numbers there; page 0 where none holds anything."""
    memory, store = layer.memory, layer.store
    lived_on = set(store.page[: len(store)].tolist())
    return [page for page in memory.numbers if page in lived_on or bool(memory.whole(page).any())] or [0]


def fill(layer: MemoirLinear, saved: dict[str, torch.Tensor]) -> None:
    """Gives a layer, whose memory is empty, the saved pages; `MaskStore.restore` takes where each edit lives."""
    memory = layer.memory
    memory.empty(max(1, _count(saved, layer.in_features)), saved["memory_rows"] if layer.part is None else None)
    done = 0
    for values in pieces(saved["memory_values"]):
        memory.take(saved["memory_rows"][done : done + len(values)], values)
        done += len(values)


def require_consistent(saved: dict[str, torch.Tensor], width: int, max_pages: int | None) -> None:
    """ValueError where a row or an edit is on no page that there may be, or a live edit on none."""
    rows, masks = saved["memory_rows"], saved["masks"]
    page = saved.get("page", torch.zeros(len(masks), dtype=torch.int32))
    count = _count(saved, width)
    if len(rows) and int(rows.min()) < 0 or len(page) and int(page.min()) < -1:
        raise ValueError("memory_rows must be at least 0, and page at least -1")
    if len(page[masks.any(dim=1)]) and int(page[masks.any(dim=1)].min()) < 0:
        raise ValueError("every live edit must live on a page")
    if len(rows) and len(rows.unique()) < len(rows):
        raise ValueError("memory_rows must be free of repeats")
    if count > max(1, min(len(masks), max_pages or len(masks))):
        raise ValueError(f"there are {count} pages, for {len(masks)} edits and max_pages = {max_pages}")


def _count(saved: dict[str, torch.Tensor], width: int) -> int:
    """How many pages the tensors speak of."""
    places = [(saved["memory_rows"], width)] + ([(saved["page"], 1)] if "page" in saved else [])
    return max((int(tensor.max()) // size + 1 for tensor, size in places if len(tensor)), default=0)
