"""A memory's folder that is kept up with it: a snapshot, and a journal of what came since."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from itertools import chain
from pathlib import Path
from typing import Any

from memoir_fast.atomic import clear
from memoir_fast.core.calibration import Calibration
from memoir_fast.core.edit import Edit
from memoir_fast.core.edited_model import EditedModel
from memoir_fast.editing.teacher import Written
from memoir_fast.errors import CheckpointError
from memoir_fast.hf.tensor_parallel import require_whole
from memoir_fast.io import changes, checkpoint, history, pages, renewal, undo
from memoir_fast.io.checkpoint import SavedMemory
from memoir_fast.io.folders import named
from memoir_fast.io.journal import Journal, JournalReader, journal_path, read
from memoir_fast.io.merge import Merged, merge
from memoir_fast.io.renewal import Files, Renewed
from memoir_fast.io.writer_lock import LOCK_NAME, WriterLock

_log = logging.getLogger("memoir_fast")

_TRIES = 10
_LEAST_SNAPSHOT = 64 << 20  # bytes of a journal from which on a new snapshot may take its place


class Durable:
    """Writes what happens to a memory to its folder, before it is acknowledged.

    Args:
        memoir (EditedModel): as the folder's files say.
        lock (WriterLock): of the folder, held; released by `close`.
        snapshot (str): the checksum of the snapshot that is there.
    """

    def __init__(self, memoir: EditedModel, lock: WriterLock, snapshot: str) -> None:
        self._memoir, self._lock = memoir, lock
        clear(lock.folder, checkpoint.LEFTOVERS)  # a process that is killed in each of its saves would fill the disk
        self._journal, self._snapshot = Journal(lock, snapshot), snapshot
        self._calibration = memoir.calibration
        self._pages = changes.PageNumbers(memoir.layer.memory.numbers)
        self._snapshot_bytes = _size(lock.folder)

    @property
    def folder(self) -> Path:
        """Where it writes."""
        return self._lock.folder

    def is_at(self, folder: str | os.PathLike) -> bool:
        """Whether `folder` is where it writes."""
        with suppress(OSError):  # either may be gone, or moved
            return os.path.samefile(folder, self.folder)
        return False

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of a memory writes nowhere."""
        return type(None), ()

    @property
    def journal(self) -> Journal:
        """What has been written since the snapshot."""
        return self._journal

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """What is put down within the block is taken back if it raises; see `Journal.all_or_nothing`."""
        calibration, numbered = self._calibration, len(self._pages)
        try:
            with self._journal.all_or_nothing():
                yield
        except BaseException:
            self._calibration = calibration
            self._pages.truncate(numbered)
            raise

    def edited(self, written: Written) -> None:
        """Puts down an edit that was written, and the threshold where that changed with it; in `all_or_nothing`."""
        entry = changes.edited(self._memoir, written, self._pages.number(written.page))
        now = self._memoir.calibration
        same = _same(now, self._calibration)
        self._journal.append_all([entry] if same else [entry, changes.calibrated(self._memoir)])
        self._calibration = now

    def deleted(self, edit_ids: list[int]) -> None:
        """Puts down that edits are deleted; before they are."""
        self._journal.append(*changes.deleted(edit_ids))

    def calibrated(self) -> None:
        """Puts down the threshold that was chosen."""
        self._journal.append(*changes.calibrated(self._memoir))
        self._calibration = self._memoir.calibration

    def snapshot_if_large(self) -> None:
        """A new snapshot where the journal has outgrown the one that there is.

        Where it cannot be written, the log says so, and the next is tried when the journal is twice as large: nothing
        of what is in the journal is lost.
        """
        if self._journal.size > max(_LEAST_SNAPSHOT, self._snapshot_bytes):
            try:
                self.snapshot()
            except CheckpointError as error:
                self._snapshot_bytes = 2 * self._journal.size
                _log.warning("the journal of %s goes on without a new snapshot: %s", self.folder, error)

    def snapshot(self) -> None:
        """Saves the memory whole; the journal begins anew. A crash at any moment leaves the one pair or the other.

        What the journal told is in the folder's history before it goes. Where saving fails when the new snapshot is in
        place already, nothing is put down any more until the folder is opened again.
        """
        self._lock.require_held()  # where the folder was moved, another may have its place
        _put_by(self.folder, self._snapshot)
        broken_off = "a snapshot was broken off in the middle; open the memory again"
        numbers = changes.PageNumbers(pages.order(self._memoir.layer))
        try:
            checksum = checkpoint.save(self._memoir, self.folder)
        except BaseException:
            if not self._is_of_folder():
                self._journal.close(broken_off)
            raise
        self._journal.close(broken_off)
        self._snapshot, self._pages = checksum, numbers
        self._journal = Journal(self._lock, checksum)  # last: where it is broken off before, nothing is appended
        self._snapshot_bytes = _size(self.folder)

    def merge(self, saved: SavedMemory, prefer: str, source: str) -> Merged:
        """As `merge.merge`, with a snapshot: both or neither. The folder's history tells of it, and of `source`.

        Raises:
            CheckpointError: the snapshot cannot be written. The memory is then what the folder says.
            Others as `merge.merge`.
        """
        self._lock.require_held()
        before = renewal.state(self._memoir)
        try:
            found = merge(self._memoir, saved, prefer)
            self.snapshot()
        except BaseException:
            if renewal.state(self._memoir) != before:
                self._take_back()
            raise
        told = {"source": source, "time": time.time()}
        told |= {"added": len(found.added), "same": len(found.same), "conflicts": len(found.conflicts)}
        try:
            history.begun(self.folder, self._journal.header.identity, history.MERGE, told)
        except CheckpointError as error:
            _log.warning("the history does not tell of the merge: %s", error)
        return found

    def undo(self, count: int) -> Renewed:
        """Takes back the last changes that are in the journal, in the files and in the memory.

        The memory is then as one that is loaded from the folder, also where an error says that only the name of the
        new journal may not last. Where the files cannot be written otherwise, all is as before.

        Raises:
            LockedError: the folder was moved.
            MemoirError, ValueError, CheckpointError: see `undo.plan`, `undo.write` and `renewal.beside`.
        """
        self._lock.require_held()
        taken = undo.plan(self.folder, self._snapshot, count)
        saved = checkpoint.read(self.folder)
        if saved.checksum != self._snapshot:
            raise CheckpointError(f"{self.folder} was saved to by others: open the memory again")
        other = renewal.beside(self._memoir, saved, chain.from_iterable(taken.appends()))
        try:
            undo.write(self._lock, taken)
        except BaseException:
            if not self._journal.in_place():  # what fails, or stops it, may come behind the move
                self._begin_anew(other)
            raise
        return self._begin_anew(other)

    def _begin_anew(self, other: Any) -> Renewed:
        """Goes on with the journal that was put in the place of this one, and with the memory that it says."""
        self._journal.close("the memory is not what the folder says; open it again")
        found = self._take_over(other)
        self._journal = Journal(self._lock, self._snapshot)
        return found

    def _take_back(self) -> None:
        """Makes the memory what the folder says; where that fails, nothing is put down any more."""
        try:
            self._take_over(as_now(self._memoir, self.folder)[0])
        except BaseException:
            self._journal.close("the memory is not what the folder says; open it again")
            raise

    def _take_over(self, other: Any) -> Renewed:
        found = renewal.take_over(self._memoir, other)
        self._calibration = self._memoir.calibration
        self._pages = changes.PageNumbers(self._memoir.layer.memory.numbers)
        return found

    def _is_of_folder(self) -> bool:
        """Whether the snapshot that the journal continues is the folder's."""
        with suppress(CheckpointError):
            return checkpoint.checksum_of(self.folder) == self._snapshot
        return False

    def close(self) -> None:
        """Lets others write to the folder."""
        self._journal.close()
        self._lock.release()


def _same(one: Calibration | None, other: Calibration | None) -> bool:
    return one is other or one is not None and other is not None and one.tau == other.tau and one.edits == other.edits


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.name.startswith(("memory-", "edits-")))


def read_pair(folder: str | os.PathLike, **hub: Any) -> tuple[SavedMemory, JournalReader | None]:
    """A snapshot and its journal, None where it has none, also while another process writes; see `checkpoint.read`."""
    for _ in range(_TRIES):
        saved = checkpoint.read(folder, **hub)
        path = journal_path(saved.folder, saved.checksum)
        reader = read(path, saved.checksum) if path.exists() else None
        if checkpoint.checksum_of(saved.folder) == saved.checksum:  # else both may be gone, and more have come
            return saved, reader
        if reader is not None:
            reader.close()
    raise CheckpointError(f"{folder} was renewed {_TRIES} times while it was read: try again")


def as_now(memoir: EditedModel, folder: str | os.PathLike) -> tuple[Any, Files]:
    """What a folder describes now, beside a memory that it may take the place of, and the state of its files.

    Raises: as `read_pair` and `renewal.beside`.
    """
    saved, journal = read_pair(folder)
    with nullcontext(()) if journal is None else journal as records:
        return renewal.beside(memoir, saved, records), Files.of(saved.checksum, journal)


def replay(memoir: EditedModel, reader: JournalReader | None) -> int:
    """Does to a memory, as its snapshot says, what the journal says; the number of the last record.

    Raises:
        CheckpointError: the journal is damaged, or does not fit the memory.
    """
    last = 0
    if reader is not None:
        with reader:
            for record in reader:
                changes.apply(memoir, record)
                last = record.sequence
    return last


def current_edits(folder: str | os.PathLike, **hub: Any) -> tuple[SavedMemory, dict[int, Edit], int]:
    """A folder's snapshot, the edits that it and its journal hold together, and how many records the journal has.

    No model is needed. CheckpointError as `checkpoint.read`, and where the journal is damaged.
    """
    saved, reader = read_pair(folder, **hub)
    edits, last = dict(saved.edits), 0
    if reader is not None:
        with reader:
            for record in reader:
                changes.apply_texts(edits, record)
                last = record.sequence
    return saved, edits, last


def holds(model: Any, folder: str | os.PathLike) -> bool:
    """Whether there is a memory in a local folder that shall be kept up with a model's.

    MemoirError where the model lies on several processes, of which each would write there.
    """
    require_whole(model, "Memoir.open")
    return (named(folder) / checkpoint.CONFIG_NAME).exists()


@contextmanager
def writing(folder: str | os.PathLike) -> Iterator[None]:
    """Within the block, nobody opens a folder that has been opened before; what its journal told is in its history.

    LockedError where somebody has it open; CheckpointError where the history cannot be written.
    """
    path = Path(folder)
    if not (path / LOCK_NAME).exists():
        yield
        return
    with WriterLock(path):
        snapshot = None
        with suppress(CheckpointError):  # a damaged memory may be saved over
            snapshot = checkpoint.checksum_of(path)
        if snapshot is not None and journal_path(path, snapshot).exists():
            _put_by(path, snapshot)
        yield


def _put_by(folder: Path, snapshot: str) -> None:
    """Puts what a snapshot's journal told into the folder's history."""
    try:
        records = read(journal_path(folder, snapshot))
    except CheckpointError as error:
        _log.warning("the history of %s lacks what its journal told: %s", folder, error)
        return
    with records:
        history.keep(folder, records)


def begin(memoir: EditedModel, folder: str | os.PathLike) -> "Durable":
    """Saves a memory to a folder that holds none, and keeps the folder up with it from then on.

    Raises:
        CheckpointError: it cannot be written, or holds a memory. LockedError: somebody else keeps it.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be made: {error}") from error
    lock = WriterLock(path)
    try:
        if (path / checkpoint.CONFIG_NAME).exists():  # it had none when the model was loaded, a while ago
            raise CheckpointError(f"{path} holds a memory now, which others have saved there meanwhile: open that one")
        return Durable(memoir, lock, checkpoint.save(memoir, path))
    except BaseException:
        lock.release()
        raise
