"""What happens to a memory, as records of a journal, and what a record does to a memory."""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import torch

from memoir_fast.core import pages
from memoir_fast.core.edit import Edit
from memoir_fast.core.edited_model import EditedModel
from memoir_fast.editing.teacher import Written
from memoir_fast.errors import CheckpointError, NewerVersionError
from memoir_fast.io import codes, reads
from memoir_fast.io.edit_texts import edit_of
from memoir_fast.io.history import UNDO
from memoir_fast.io.journal import Entry
from memoir_fast.io.plausible import calibration_in, require_bits
from memoir_fast.io.records import Record

EDIT = "edit"
EDIT_IN_BANK = "edit-in-bank"  # releases that know no banks refuse it: they would tell everybody
EDIT_NAMED = "edit-named"  # those that know no subjects refuse it: they would tell it of other subjects
_EDITS = (EDIT, EDIT_IN_BANK, EDIT_NAMED)


def edited(memoir: EditedModel, written: Written, page: int) -> Entry:
    """An edit that was just written, on the page of that number in files; see `PageNumbers`."""
    edit_id, rows = written.edit_id, written.rows
    store, edit = memoir.layer.store, memoir.edits[edit_id]
    weight = memoir.layer.memory.page(int(store.page[edit_id]))
    number = torch.arange(len(weight), dtype=torch.int32)[rows.cpu() if isinstance(rows, torch.Tensor) else rows]
    tensors = {
        "mask": store.masks[edit_id],
        "target_tokens": store.target_tokens[edit_id],
        "rows": number,
        "values": weight[number.long().to(weight.device)],
    }
    if written.codes is not None:
        tensors |= codes.Rows(*(getattr(written.codes, name) for name in codes.Rows._fields)).named("code")
    if written.reads is not None:
        tensors["reads"] = written.reads.inputs
    values = {"id": edit_id, "page": page, "emptied": written.emptied, "time": time.time(), **dataclasses.asdict(edit)}
    if written.reads is not None:
        values["stop"] = written.reads.stop
    kind = EDIT_NAMED if edit.subject else EDIT_IN_BANK if edit.bank else EDIT
    return kind, values, tensors


def deleted(edit_ids: list[int]) -> Entry:
    """Edits that were deleted."""
    return "delete", {"ids": edit_ids, "time": time.time()}, {}


def calibrated(memoir: EditedModel) -> Entry:
    """The threshold that is in force, and how it was chosen."""
    layer = memoir.layer
    least = layer.store.min_overlap[: len(layer.store)] if layer.codes is None else layer.codes.state()["min_overlap"]
    values = {
        "tau": memoir.tau,
        "calibration": memoir.calibration and memoir.calibration.to_dict(),
        "time": time.time(),
    }
    background = {} if memoir.background is None else {"background": memoir.background}
    return "calibration", values, {"min_overlap": least, **background}


class PageNumbers:
    """The numbers that a memory's pages have in its files: those of the snapshot, then new ones in order.

    Args:
        known (list of int): pages of the memory, in the order of their numbers in the snapshot.
    """

    def __init__(self, known: list[int]) -> None:
        self._numbers = {page: number for number, page in enumerate(known)}

    def __len__(self) -> int:
        return len(self._numbers)

    def number(self, page: int) -> int:
        """The number of a page; one that has none gets the next."""
        return self._numbers.setdefault(page, len(self._numbers))

    def truncate(self, count: int) -> None:
        """Forgets those that got a number last, but for the first `count`."""
        while len(self._numbers) > count:
            self._numbers.popitem()


def apply(memoir: EditedModel, record: Record) -> None:
    """Does to a memory what a record says.

    Raises:
        CheckpointError: the record does not fit the memory, or is of a kind that this version does not know.
    """
    kinds = {**dict.fromkeys(_EDITS, _edit), "delete": _delete, "calibration": _calibrate, UNDO: _tell}
    if record.kind not in kinds:
        raise NewerVersionError(
            f"record {record.sequence} of the journal is of a kind that this version does not know: {record.kind!r}"
        )
    try:
        page = record.values.get("page")
        known = page if page in memoir.layer.memory.numbers else None
        with memoir.layer.changing(page=known, rows=True):
            kinds[record.kind](memoir, record.values, record.tensors)
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"record {record.sequence} of the journal does not fit the memory: {type(error).__name__}: {error}"
        ) from error


def apply_texts(edits: dict[int, Edit], record: Record) -> None:
    """As `apply`, to the texts of the edits alone."""
    try:
        if record.kind in _EDITS:
            edits[int(record.values["id"])] = _edit_of(record.values)
        elif record.kind == "delete":
            for edit_id in record.values["ids"]:
                del edits[edit_id]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"record {record.sequence} of the journal does not fit: {type(error).__name__}: {error}"
        ) from error


def _edit_of(values: Mapping[str, Any]) -> Edit:
    """Edits of releases that gave them no time were taught when they were put down."""
    return edit_of({"taught_at": values.get("time"), **values})


def _edit(memoir: EditedModel, values: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    layer, page = memoir.layer, values["page"]
    device, memory = layer.memory.table.device, layer.memory
    edit = _edit_of(values)
    for name in ("values", "rows", "target_tokens"):
        _require_numbers(name, tensors[name])
    if not 0 <= page <= memory.pages:
        raise ValueError(f"page {page} of {memory.pages}")
    while memory.pages <= page:
        memory.open()
    if values["emptied"]:
        pages.empty(layer, page)
    rows, own = tensors["rows"].long().to(device), None
    weight = tensors["values"]
    if (
        weight.shape != (len(rows), memory.outputs)
        or len(rows)
        and not 0 <= int(rows.min()) <= int(rows.max()) < layer.in_features
    ):
        raise ValueError(f"values must be [rows, {memory.outputs}], rows in 0 .. {layer.in_features - 1}")
    require_bits(tensors["mask"][None], layer.in_features, layer.k)
    if not tensors["mask"].any() or len(rows.unique()) < len(rows):
        raise ValueError("a mask must have bits, and rows no repeats")
    if layer.codes is not None:
        codes.require_bits(tensors["code_codes"], tensors["code_room"], layer.codes.width, layer.codes.k)
        own = codes.Rows.of(tensors, "code", device)
        if own.names is not None and layer.code is not None:
            codes.require_tokens(own.names, len(own.codes), len(layer.code.alike))
        codes.require_subjects(own.names, own.room, (own.room > 0) & bool(edit.subject))
    read = reads.of_record(values, tensors, layer)
    with memoir.edits.put(edit, tensors["mask"].to(device), page, own) as edit_id:
        if edit_id != values["id"]:
            raise ValueError(f"expected the id {values['id']}, got {edit_id}")
        memory.take(rows + layer.in_features * page, weight)
        layer.store.rest_after(edit_id, tuple(tensors["target_tokens"].tolist()))
    if read is not None:
        memoir.edits.reads[edit_id] = read


def _require_numbers(name: str, tensor: torch.Tensor) -> None:
    if tensor.is_floating_point() != (name == "values") or not tensor.isfinite().all():
        raise ValueError(
            f"{name} must be finite {'floats' if name == 'values' else 'whole numbers'}, got {tensor.dtype}"
        )
    if name != "values" and tensor.numel() and int(tensor.min()) < 0:
        raise ValueError(f"{name} must be at least 0")


def _delete(memoir: EditedModel, values: Mapping[str, Any], _: Mapping[str, torch.Tensor]) -> None:
    ids = values["ids"]
    if len({*ids}) < len(ids):
        raise ValueError(f"an edit is deleted twice among {len(ids)}")
    memoir.edits.deletion(ids)()  # at once: each by itself would look through all code rows


def _tell(*_: Any) -> None:
    """What was undone is not in the journal any more."""


def _calibrate(memoir: EditedModel, values: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    layer, least = memoir.layer, tensors["min_overlap"].to(memoir.layer.memory.table.device)
    rows = torch.arange(len(layer.store), device=least.device)
    if layer.codes is not None:
        rows = (layer.codes.owner[: len(layer.codes)] >= 0).nonzero().flatten()
    if least.dtype != torch.int32 or least.shape != rows.shape or len(rows) and int(least.min()) < 1:
        raise ValueError(f"min_overlap must be int32 [{len(rows)}], at least 1, got {least.dtype} {list(least.shape)}")
    layer.tau = values["tau"]
    layer.searched.min_overlap[rows] = least
    memoir.calibration = calibration_in(values["calibration"])
    background = tensors.get("background")
    if background is not None and (background.dim() != 2 or background.dtype != torch.int32):
        raise ValueError(f"background must be int32 [M, W], got {background.dtype} {list(background.shape)}")
    memoir.background = None if background is None else background.to(least.device)
