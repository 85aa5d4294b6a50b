"""Taking back the last changes of a memory that are in its journal."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from memoir_fast.errors import MemoirError
from memoir_fast.io import checkpoint, history, rewrite
from memoir_fast.io.history import UNDO
from memoir_fast.io.journal import Entry, journal_path, read
from memoir_fast.io.records import Record
from memoir_fast.io.writer_lock import WriterLock


@dataclass(frozen=True)
class Taken:
    """What is to be taken back, of one snapshot's journal."""

    folder: Path
    snapshot: str
    kept: int
    """How many appends of the journal stay, from its first."""
    undone: list[dict[str, Any]]
    """What its last ones told, in short; see `history.told`."""

    def appends(self) -> Iterator[list[Record]]:
        """The records that stay, those of each append."""
        path = journal_path(self.folder, self.snapshot)
        if self.kept:
            with read(path, self.snapshot) as reader:
                yield from islice(_changes(reader.appends()), self.kept)


def plan(folder: str | os.PathLike, snapshot: str, count: int) -> Taken:
    """What taking back the last `count` changes of a folder comes to; nothing is changed yet.

    A change is what was put down at once: an edit, with the threshold that was chosen with it.

    Raises:
        ValueError: `count` is below 1.
        MemoirError: there are not as many since the last snapshot.
        CheckpointError: the journal is damaged.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"n must be a whole number of at least 1, got {count!r}")
    told: list[list[dict[str, Any]]] = []
    if journal_path(folder, snapshot).exists():
        with read(journal_path(folder, snapshot), snapshot) as reader:
            told = [[history.told(one) for one in together] for together in _changes(reader.appends())]
    if count > len(told):
        raise MemoirError(
            f"{count} changes were to be taken back, the journal of {folder} has {len(told)}: what came before the "
            "last snapshot cannot be undone; delete such edits, or teach the earlier targets again"
        )
    kept = len(told) - count
    return Taken(Path(folder), snapshot, kept, list(chain.from_iterable(told[kept:])))


def write(lock: WriterLock, taken: Taken) -> None:
    """Takes it back: the journal is written anew without it. Its history tells what was there, and that it was undone.

    A crash at any moment leaves the journal as it was, or as it shall be.

    Raises:
        CheckpointError: the disk is full or fails; see `rewrite.write`. LockedError: the lock is not held.
    """
    with read(journal_path(taken.folder, taken.snapshot), taken.snapshot) as reader:
        history.keep(taken.folder, reader)
    last: Entry = (UNDO, {"time": time.time(), **history.undone(taken.undone)}, {})
    stays = ([(one.kind, one.values, one.tensors) for one in together] for together in taken.appends())
    rewrite.write(lock, taken.snapshot, chain(stays, [[last]]))


def undo(folder: str | os.PathLike, count: int = 1) -> list[dict[str, Any]]:
    """Takes back the last changes of a folder that nobody has open; no model is needed.

    Args:
        folder (path): one that was opened by `Memoir.open`.
        count (int): how many changes. Default: 1.

    Returns:
        list of dict: what was taken back, oldest first, in short.

    Raises:
        LockedError: somebody has it open. Others as `plan` and `write`.

    Example:
        >>> from memoir_fast import Memoir
        >>> from memoir_fast.io.undo import undo
        >>> with Memoir.open(model, tokenizer, folder) as memoir:
        ...     result = memoir.edit("The capital of France is", "Lyon")
        >>> undo(folder)[0]["target"]
        'Lyon'
    """
    checkpoint.checksum_of(folder)  # before a lock is put where no memory is
    with WriterLock(folder) as lock:
        taken = plan(folder, checkpoint.checksum_of(folder), count)
        write(lock, taken)
    return taken.undone


def _changes(appends: Iterator[list[Record]]) -> Iterator[list[Record]]:
    """Without what tells of an undoing, which is not undone."""
    return (together for together in appends if together[0].kind != UNDO)
