"""Repairing a damaged folder: what is sound goes to a new one whole, and what is lost is named."""

import json
import os
import shutil
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memoir_fast.atomic import filling, replace, replacing, sync_names
from memoir_fast.core.edit import Edit
from memoir_fast.errors import CheckpointError, NewerVersionError
from memoir_fast.io import changes, checkpoint, durable, frames, records, salvage
from memoir_fast.io.checkpoint import SavedMemory
from memoir_fast.io.edit_texts import row_of
from memoir_fast.io.files import open_file, read_file
from memoir_fast.io.folders import local
from memoir_fast.io.frames import Frame, Header
from memoir_fast.io.history import HISTORY_NAME
from memoir_fast.io.journal import JournalReader, journal_path, read
from memoir_fast.io.without_model import without_model

_LONGEST_HISTORY = 1 << 30  # bytes
LOST_NAME, UNSURE_NAME = "lost-edits.jsonl", "unsure-edits.jsonl"


@dataclass
class Survey:
    """What a folder holds, and what of it is damaged."""

    folder: Path
    damage: list[str] = field(default_factory=list)
    """What is wrong, file by file; empty where all is whole."""
    saved: SavedMemory | None = None
    """The snapshot; None where it cannot be used."""
    kept: dict[int, Edit] = field(default_factory=dict)
    """The edits of the snapshot and of the journal before its damage, without those that were deleted behind it."""
    records: int = 0
    """Records of the journal before its damage."""
    carried: list[int] = field(default_factory=list)
    """Edits that were deleted behind the damage, and so are deleted."""
    lost: dict[int, Edit] = field(default_factory=dict)
    """Edits behind the damage, or of a snapshot that cannot be used, whose texts are whole, by their ids there."""
    unsure: dict[int, Edit] = field(default_factory=dict)
    """The same whose bytes are damaged: a letter may be another."""
    unreadable: int = 0
    """Further records, at least, of which nothing can be kept: thresholds, and such as cannot be read."""
    bytes_dropped: int = 0
    """At the journal's end, of a record that was never acknowledged."""
    frames: list[Frame] = field(default_factory=list)
    """Of the journal, before its damage."""

    @property
    def anything_lost(self) -> bool:
        """Whether something that was acknowledged is lost, or may be."""
        return bool(self.lost or self.unsure or self.unreadable or self.saved is None)


def survey(folder: str | os.PathLike, **hub: Any) -> Survey:
    """Goes through all of a folder, tries its journal on its snapshot, and reads what texts damage has left.

    No model is needed, and nothing is changed. Others may be writing to the folder.

    Args:
        folder (path): a local folder, or a hub id.
        **hub: options of `huggingface_hub.snapshot_download`.

    Raises:
        NewerVersionError: something in it was written by a newer version, and is not damaged.
        CheckpointError: there is no folder, or nothing of a memory is in it that could be read.

    Example:
        >>> memoir.save_pretrained(folder)
        >>> from memoir_fast.io.repair import survey
        >>> survey(folder).damage
        []
    """
    path = local(folder, hub)
    found = Survey(path)
    try:
        found.saved, reader = _snapshot(path)
        memory = without_model(found.saved)
    except NewerVersionError:
        raise
    except CheckpointError as error:
        found.saved, found.damage = None, [str(error)]
        _take(found, salvage.of_folder(path))
        if not found.lost and not found.unsure:
            raise CheckpointError(f"nothing in {path} can be read: {error}") from error
        return found
    found.kept = dict(memory.edits)
    place = journal_path(path, found.saved.checksum)
    if isinstance(reader, JournalReader):
        with closing(reader):
            _replay(found, memory, reader)
    elif reader is not None:
        found.damage.append(str(reader))
        texts = salvage.Texts()
        salvage.of_journal(place, texts)  # of another memory, or without digests: nothing of it is certain
        found.unsure = texts.edits | texts.unsure
        found.unreadable = 0 if found.unsure else 1
    return found


def _snapshot(path: Path) -> tuple[SavedMemory, JournalReader | CheckpointError | None]:
    """The snapshot, and its journal, or why that cannot be read."""
    try:
        return durable.read_pair(path)
    except NewerVersionError:
        raise
    except CheckpointError as error:
        return checkpoint.read(path), error  # raises where it was the snapshot's


def _replay(found: Survey, memory: Any, reader: JournalReader) -> None:
    """Tries the journal on a memory, frame by frame, up to what is damaged or does not fit."""
    place = reader.frames.end
    try:
        for frame in reader.frames:
            edits = dict(found.kept)
            for record in reader.of(frame):
                changes.apply(memory, record)
                changes.apply_texts(edits, record)
            found.kept, found.records, place = edits, frame.first + frame.records - 1, frame.end
            found.frames.append(frame)
    except NewerVersionError:
        raise
    except CheckpointError as error:
        found.damage.append(str(error))
    found.bytes_dropped = 0 if reader.tail is None else reader.tail.bytes_dropped
    texts = salvage.behind(reader.frames, place, found.kept)
    _take(found, texts)
    found.unreadable = max(0, max(len(found.damage), texts.last - found.records) - texts.records)


def _take(found: Survey, texts: salvage.Texts) -> None:
    found.lost, found.unsure, found.unreadable = texts.edits, texts.unsure, texts.unreadable
    found.carried = [edit_id for edit_id in dict.fromkeys(texts.deleted) if edit_id in found.kept]
    found.kept = {edit_id: edit for edit_id, edit in found.kept.items() if edit_id not in found.carried}


def repair(folder: str | os.PathLike, to: str | os.PathLike) -> Survey:
    """Writes what can be kept of a folder to a new one, and beside it the texts of what cannot.

    The new folder has the snapshot, the journal up to its damage, and the deletions behind it; edits behind the damage
    were learned on top of what is missing, and go as texts to `lost-edits.jsonl`, or, where their own bytes are
    damaged, to `unsure-edits.jsonl`: JSON lines that `memoir edit` reads. Of a snapshot that cannot be used, texts are
    all there is. The new folder is there whole or not at all; `folder` is not changed. What a repair that was killed
    left beside `to` goes when it is done again.

    Args:
        folder (path): a local folder.
        to (path): a folder that is not there yet, or is empty.

    Returns:
        Survey: what was kept and what is lost.

    Raises:
        NewerVersionError, CheckpointError: as `survey`; or the new folder cannot be written.
        FileExistsError: there is something in it already.

    Example:
        >>> memoir.save_pretrained(folder)
        >>> from memoir_fast.io.repair import repair
        >>> repair(folder, folder.with_name("repaired")).anything_lost
        False
    """
    target = Path(to)
    if os.path.lexists(target) and not (target.is_dir() and not os.listdir(target)):
        raise FileExistsError(f"{target} is there already: a repaired memory goes to a new folder")
    found = survey(folder)
    try:
        with filling(target.absolute()) as beside:
            _fill(found, beside)
    except OSError as error:
        raise CheckpointError(f"{target} cannot be written: {error}") from error
    return found


def _fill(found: Survey, beside: Path) -> None:
    """Writes a new folder's files, each synced, and reads them again."""
    saved = found.saved
    if saved is not None:
        for name in (checkpoint.CONFIG_NAME, *saved.sizes):
            with open_file(saved.folder / name) as source, replacing(beside / name) as file:
                shutil.copyfileobj(source, file)
        history = b""
        with suppress(OSError, CheckpointError):  # it decides nothing, and may be damaged or missing
            history = read_file(saved.folder / HISTORY_NAME, _LONGEST_HISTORY)
        if history:
            replace(beside / HISTORY_NAME, history)
        if found.frames or found.carried:
            _write_journal(found, journal_path(beside, saved.checksum))
    for name, edits in ((LOST_NAME, found.lost), (UNSURE_NAME, found.unsure)):
        if edits:
            lines = (json.dumps(row_of(*one), ensure_ascii=False) + "\n" for one in sorted(edits.items()))
            replace(beside / name, "".join(lines).encode())
    if saved is not None:
        again = survey(beside)
        if again.damage or again.kept != found.kept:
            raise CheckpointError(f"{found.folder} was changed while it was read, or the disk fails: try again")
    sync_names(beside)


def _write_journal(found: Survey, path: Path) -> None:
    """Writes a journal of the frames before the damage, and of the deletions behind it."""
    assert found.saved is not None
    header = Header.new(found.saved.checksum)
    with replacing(path) as file:
        file.write(header.line)
        if found.frames:
            with read(journal_path(found.saved.folder, found.saved.checksum)) as old:
                for frame in found.frames:
                    body = old.frames.read(frame.body, frame.size)
                    file.writelines([frames.pack(header.salt, frame.first, frame.records, [body]), body])
        if found.carried:
            parts = records.pack(*changes.deleted(found.carried))
            file.writelines([frames.pack(header.salt, found.records + 1, 1, parts), *parts])
