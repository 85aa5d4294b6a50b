"""A journal: what happened to a memory since its last snapshot, one record after the other, each synced.

It lies in the memory's folder beside the snapshot that it continues, bears a part of that snapshot's checksum in its
name and all of it in its first line, and is never applied to another. A record is there whole or not at all.
"""

import io
import logging
import os
import re
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from memoir_fast.atomic import leftover, replace, sync_names
from memoir_fast.errors import CheckpointError
from memoir_fast.io import frames, records
from memoir_fast.io.files import open_file
from memoir_fast.io.frames import Frame, Frames, Header, Tail
from memoir_fast.io.records import SIZES, Record
from memoir_fast.io.writer_lock import WriterLock, fcntl

JOURNAL_NAMES = r"journal-[0-9a-f]{12}\.log"
"""A regular expression for the names that journals have."""

_log = logging.getLogger("memoir_fast")

Entry = tuple[str, Mapping[str, Any], Mapping[str, torch.Tensor]]


def journal_path(folder: str | os.PathLike, snapshot: str) -> Path:
    """Where the journal of a snapshot lies; `snapshot` is the checksum of its settings."""
    return Path(folder) / f"journal-{snapshot[:12]}.log"


class Journal:
    """A journal that is open for appending. One process has it, by the folder's lock; its threads may share it.

    It is begun where there is none. What a crash left of a record that was never acknowledged is cut off, and told in
    `tail` and in the log.

    Args:
        lock (WriterLock): of the folder, held.
        snapshot (str): checksum of the settings of the snapshot that is continued, 64 digits of hex.

    Raises:
        CheckpointError: the journal is damaged, continues another snapshot, or cannot be read or written.
        LockedError: the lock was released.
        ValueError: `snapshot` is no checksum.

    Example:
        >>> import tempfile, torch
        >>> from memoir_fast.io.journal import Journal, read
        >>> from memoir_fast.io.writer_lock import WriterLock
        >>> with WriterLock(tempfile.mkdtemp()) as lock, Journal(lock, "ab" * 32) as journal:
        ...     journal.append("note", {"text": "begun"}, {"ids": torch.arange(3)})
        ...     [(record.kind, record.values, record.tensors["ids"].tolist()) for record in read(journal.path)]
        1
        [('note', {'text': 'begun'}, [0, 1, 2])]
    """

    def __init__(self, lock: WriterLock, snapshot: str) -> None:
        self.path = journal_path(lock.folder, snapshot)
        self.tail: Tail | None = None
        """What was cut off when the journal was opened."""
        self._lock, self._one_at_a_time = lock, threading.Lock()
        self._unusable: str | None = None
        self._end = self._sequence = 0
        lock.require_held()
        try:
            if not os.path.lexists(self.path):
                clear_leftovers(lock.folder)
                replace(self.path, Header.new(snapshot).line)
            self._file = open_file(self.path, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW)
            lock.keep_from_children(self._file)
            try:
                self._find_end(snapshot)
            except BaseException:
                self._file.close()
                raise
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be opened for writing: {error}") from error

    @property
    def sequence(self) -> int:
        """Number of the last record; 0 where there is none."""
        return self._sequence

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._end

    def append(
        self, kind: str, values: Mapping[str, Any] | None = None, tensors: Mapping[str, torch.Tensor] | None = None
    ) -> int:
        """Appends a record and returns its sequence number; the record is on the disk then.

        Args:
            kind (str): 1 to 32 of a-z, 0-9, _ and -, a letter first.
            values (mapping): plain values for JSON, see `strict_json`. Default: none.
            tensors (mapping of str to Tensor): on any device. Default: none.

        Raises:
            TypeError, ValueError: a record cannot hold that; nothing was written.
            CheckpointError: the disk is full or fails, or the journal was changed by others. The record is not in the
                journal; the message says whether more can be appended.
            LockedError: the folder's lock is not held any more.
        """
        return self.append_all([(kind, values or {}, tensors or {})])[0]

    def append_all(self, entries: Iterable[Entry]) -> range:
        """Appends several records with one sync and returns their sequence numbers: all are there, or none.

        Args:
            entries (iterable of (kind, values, tensors)): as `append` takes them.

        Raises:
            as `append`.
        """
        packed = [records.pack(*entry) for entry in entries]
        body = [part for parts in packed for part in parts]
        self._lock.require_held()  # in a forked child, what comes next might wait for a thread of the parent
        with self._one_at_a_time:
            first = self._sequence + 1
            if packed:
                self._require_usable()
                self._write([frames.pack(self.header.salt, first, len(packed), body), *body], len(packed))
            return range(first, first + len(packed))

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """What is appended within the block is taken back if it raises, as where an interrupt comes behind an append.

        CheckpointError where it cannot be: nothing more is appended then.
        """
        end, sequence = self._end, self._sequence
        try:
            yield
        except BaseException as error:
            with self._one_at_a_time:
                if self._end > end and not self._file.closed:
                    self._end, self._sequence = end, sequence
                    with _settled(self._file.fileno(), shared=False):
                        self._take_back(error)
            raise

    def in_place(self) -> bool:
        """Whether what has its name in the folder is this very file."""
        own, there = os.fstat(self._file.fileno()), None
        with suppress(OSError):
            there = os.lstat(self.path)
        return there is not None and (there.st_dev, there.st_ino) == (own.st_dev, own.st_ino)

    def close(self, why: str = "it was closed") -> None:
        """Closes the file; the lock stays held. Nothing can be appended afterwards, and `why` is what is said then."""
        self._unusable = why
        self._file.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _find_end(self, snapshot: str) -> None:
        """Goes through all that is there, and cuts off what was never acknowledged."""
        with JournalReader(self.path, snapshot) as reader:
            for _ in reader.frames:
                pass
        self.header = reader.header
        self._end, self._sequence, self.tail = reader.frames.end, reader.frames.records, reader.frames.tail
        if self.tail is not None:
            os.ftruncate(self._file.fileno(), self._end)
            _log.warning("%d bytes were dropped: %s", self.tail.bytes_dropped, self.tail.reason)
        # What a killed process wrote may be whole here and not on the disk yet, its file's name as well.
        os.fsync(self._file.fileno())
        sync_names(self.path.parent)

    def _require_usable(self) -> None:
        """Nothing was left half done, and nobody else has touched the lock or the file."""
        if self._unusable is not None:
            raise CheckpointError(f"nothing can be appended to {self.path}: {self._unusable}")
        self._lock.require_held()
        own = os.fstat(self._file.fileno())
        if own.st_size != self._end:
            raise CheckpointError(
                f"nothing can be appended to {self.path}: it has {own.st_size} bytes, this process left {self._end}: "
                "somebody else has written to it; open the memory again"
            )
        if not self.in_place():
            raise CheckpointError(
                f"nothing can be appended to {self.path}: it was removed or replaced; open the memory again"
            )

    def _write(self, parts: list[bytes], count: int) -> None:
        descriptor = self._file.fileno()
        with _settled(descriptor, shared=False):  # readers see it once it is synced
            self._unusable = "an append was broken off in the middle; open the memory again"
            try:
                for part in parts:
                    _write_whole(descriptor, part)
                os.fsync(descriptor)
                self._end, self._sequence = self._end + sum(map(len, parts)), self._sequence + count
                self._unusable = None
            except BaseException as error:
                self._take_back(error)
                raise

    def _take_back(self, error: BaseException) -> None:
        """Makes the file as it was before an append that failed."""
        descriptor = self._file.fileno()
        try:
            os.ftruncate(descriptor, self._end)
            os.fsync(descriptor)
        except OSError as second:
            self._unusable = f"an append failed ({error}) and could not be taken back ({second}); open the memory again"
            raise CheckpointError(
                f"{self.path}: the record could not be written ({error}), and what is there of it could not be taken "
                f"back ({second}): nothing more is appended until the memory is opened again; records that are safe: "
                f"{self._sequence}"
            ) from error
        self._unusable = None
        if isinstance(error, OSError):
            raise CheckpointError(
                f"{self.path}: the record could not be written: {error}; the journal is as it was before"
            ) from error


class JournalReader(Iterator[Record]):
    """The records of a journal, one at a time, as they were when it was opened; see `read`."""

    def __init__(self, path: str | os.PathLike, snapshot: str | None = None, after: int = 0) -> None:
        self.path = Path(path)
        try:
            self._file = io.BufferedReader(open_file(self.path))
        except FileNotFoundError:
            raise CheckpointError(f"there is no journal {self.path}") from None
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {error}") from error
        try:
            with _settled(self._file.fileno(), shared=True):
                self.size = os.fstat(self._file.fileno()).st_size
                """Bytes that it may read."""
            self.header = frames.read_header(self._file, self.path)
            if snapshot is not None and self.header.snapshot != snapshot:
                raise CheckpointError(
                    f"{self.path} continues the snapshot {self.header.snapshot[:12]}..., not the folder's "
                    f"{snapshot[:12]}...: it belongs to another memory, or to an earlier state of this one"
                )
        except BaseException:
            self._file.close()
            raise
        self.frames = Frames(self._file, self.path, self.header, self.size)
        self._records = self._all(after)

    @property
    def tail(self) -> Tail | None:
        """What was dropped at the end; None before the end was reached, and where nothing had to be."""
        return self.frames.tail

    def __next__(self) -> Record:
        try:
            return next(self._records)
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {error}") from error

    def appends(self) -> Iterator[list[Record]]:
        """The records of each append, those that were put down at once in one list; in place of one at a time."""
        with self:
            for frame in self.frames:
                yield list(self.of(frame))

    def close(self) -> None:
        """Closes the file; there are no further records then."""
        self._records.close()
        self._file.close()

    def __enter__(self) -> "JournalReader":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _all(self, after: int) -> Generator[Record, None, None]:
        with self._file:
            for frame in self.frames:
                if frame.first + frame.records - 1 > after:
                    yield from (record for record in self.of(frame) if record.sequence > after)

    def of(self, frame: Frame) -> Iterator[Record]:
        """The records of a whole frame; CheckpointError as `read`'s iterator."""
        place, last = frame.body, frame.first + frame.records - 1
        for sequence in range(frame.first, last + 1):
            start, left = place, frame.end - place - SIZES.size
            text, content = SIZES.unpack(self.frames.read(start, SIZES.size)) if left >= 0 else (0, 0)
            place += SIZES.size + text + content
            if place > frame.end or (sequence == last and place < frame.end):
                raise self.frames.damage(start, sequence, f"its parts do not make up its {frame.size} bytes")
            try:
                body = self.frames.read(start + SIZES.size, text + content)
                record = records.unpack(sequence, body[:text], body[text:])
            except ValueError as error:
                raise self.frames.damage(start, sequence, f"it was written as no record is: {error}") from error
            yield record


def read(path: str | os.PathLike, snapshot: str | None = None, after: int = 0) -> JournalReader:
    """The records of a journal, in their order, one at a time; at most one of them, and a block, is in memory.

    What is read is what was acknowledged when this was called, also while another process appends.

    Args:
        path (path): a journal.
        snapshot (str): checksum of the settings of the snapshot that it must continue. Default: any.
        after (int): leave out the records up to this sequence number.

    Returns:
        JournalReader: an iterator, whose `tail` tells at the end what had to be dropped; a context manager too.

    Raises:
        CheckpointError: here, where the file is no journal, cannot be read, is of a newer version or continues another
            snapshot; from the iterator, behind the records that can still be read, where it is damaged.

    Example:
        >>> import tempfile
        >>> from memoir_fast.io.journal import Journal, read
        >>> from memoir_fast.io.writer_lock import WriterLock
        >>> with WriterLock(tempfile.mkdtemp()) as lock, Journal(lock, "ab" * 32) as journal:
        ...     journal.append_all([("note", {"n": 1}, {}), ("note", {"n": 2}, {})])
        ...     [record.values["n"] for record in read(journal.path, after=1)]
        range(1, 3)
        [2]
    """
    return JournalReader(path, snapshot, after)


@contextmanager
def _settled(descriptor: int, *, shared: bool) -> Iterator[None]:
    """Holds an open journal's lock: appending holds it until the record is synced, a reader while it asks for the size.

    Where there are no locks, a reader may see a record a moment before it is acknowledged.
    """
    if fcntl is not None:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    try:
        yield
    finally:
        if fcntl is not None:
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)


def _write_whole(descriptor: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def clear_leftovers(folder: Path) -> None:
    """Removes journals that a crash kept from being begun."""
    for name in os.listdir(folder):
        if re.fullmatch(leftover(JOURNAL_NAMES), name):
            (folder / name).unlink()
