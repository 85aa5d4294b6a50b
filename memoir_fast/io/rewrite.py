"""A journal written anew, in the place of the one that is there: what undoing and repairing come to."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from memoir_fast.atomic import replacing, sync_names
from memoir_fast.errors import CheckpointError
from memoir_fast.io import frames, records
from memoir_fast.io.frames import Header
from memoir_fast.io.journal import Entry, clear_leftovers, journal_path
from memoir_fast.io.writer_lock import WriterLock


def write(lock: WriterLock, snapshot: str, appends: Iterable[Sequence[Entry]]) -> Path:
    """Puts a journal of these records in the place of the folder's, with an identity of its own.

    A crash at any moment leaves the old one or the new one, whole. A `Journal` that is open on the old one appends
    nothing any more; who reads the old one reads on.

    Args:
        lock (WriterLock): of the folder, held.
        snapshot (str): checksum of the settings of the snapshot that is continued, 64 digits of hex.
        appends (iterable of lists of (kind, values, tensors)): what belongs together, as `Journal.append_all` takes
            it; one list at a time is in memory.

    Returns:
        Path: the journal's.

    Raises:
        TypeError, ValueError: a record cannot hold that; CheckpointError: the disk is full or fails. The old journal is
            as it was, unless the message says that only its name may not last.
        LockedError: the lock is not held.

    Example:
        >>> import tempfile
        >>> from memoir_fast.io import rewrite
        >>> from memoir_fast.io.journal import Journal, read
        >>> from memoir_fast.io.writer_lock import WriterLock
        >>> with WriterLock(tempfile.mkdtemp()) as lock, Journal(lock, "ab" * 32) as journal:
        ...     journal.append_all([("note", {"n": n}, {}) for n in range(3)])
        ...     path = rewrite.write(lock, "ab" * 32, [[("note", {"n": 7}, {})]])
        ...     [record.values["n"] for record in read(path)]
        range(1, 4)
        [7]
    """
    lock.require_held()
    path, header, first = journal_path(lock.folder, snapshot), Header.new(snapshot), 1
    try:
        clear_leftovers(lock.folder)
        with replacing(path) as file:
            file.write(header.line)
            for entries in appends:
                body = [part for entry in entries for part in records.pack(*entry)]
                if body:
                    file.writelines([frames.pack(header.salt, first, len(entries), body), *body])
                    first += len(entries)
            lock.require_held()  # until the new one is in place, whoever holds it now may append to the old one
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written anew: {error}; it is as it was before") from error
    try:
        sync_names(lock.folder)
    except OSError as error:
        raise CheckpointError(
            f"{path} was written anew, but a power cut may bring the old one back ({error}): check the disk"
        ) from error
    return path
