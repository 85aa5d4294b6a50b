"""One writer at a time for a memory's folder.

The lock is the system's own (`flock`) on a file that stays in the folder. The system frees it when the process ends, by
`kill -9` too, so no lock is ever stale. What the file says is for messages alone: who writes, and since when.
"""

import io
import json
import os
import socket
import stat
import time
import weakref
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from memoir_fast.errors import CheckpointError, LockedError
from memoir_fast.io import strict_json

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None

LOCK_NAME = "writer.lock"
_LONGEST = 4096
_STEPS = (("day", 86400), ("hour", 3600), ("minute", 60))
_held: "weakref.WeakSet[WriterLock]" = weakref.WeakSet()


@dataclass(frozen=True)
class Owner:
    """Who holds a lock, as far as the lock's file says."""

    pid: int
    host: str
    started: float | None
    """When the process began, in seconds since 1970; None where the system does not tell."""
    since: float
    """When it took the lock, likewise."""

    def __str__(self) -> str:
        host = "this machine" if self.host == socket.gethostname() else f"host {self.host!r}"
        process = "this very process" if self.pid == os.getpid() and host == "this machine" else f"process {self.pid}"
        running = "" if self.started is None else f", running for {_age(self.started)}"
        return f"{process} on {host}{running}, which took the lock {_age(self.since)} ago"


class WriterLock:
    """The right to write to a memory's folder, held until `release`, the end of a `with`, or the process's end.

    A child that this process forks does not hold it, and does not keep it from being freed.

    Args:
        folder (path): there already.

    Raises:
        LockedError: somebody holds it; the message names the process, its host and the lock's age, and says what to do.
        CheckpointError: the folder is missing or read-only, or its file system has no locks.

    Example:
        >>> import tempfile
        >>> from memoir_fast.io.writer_lock import WriterLock
        >>> folder = tempfile.mkdtemp()
        >>> with WriterLock(folder) as lock:
        ...     WriterLock(folder)
        Traceback (most recent call last):
            ...
        memoir_fast.errors.LockedError: ... is being written by this very process on this machine...
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder).absolute()  # also where the process goes to another folder
        self.path = self.folder / LOCK_NAME
        self.previous: Owner | None = None
        """The last writer, where it ended without releasing the lock: by a crash or a kill."""
        self._file: io.FileIO | None = None
        self._files: weakref.WeakSet[io.FileIO] = weakref.WeakSet()
        if fcntl is None:
            raise CheckpointError(
                f"{self.path} cannot be locked: this system has no file locks, only Linux and macOS do"
            )
        file = self._open()
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _read_owner(file)
            file.close()
            raise LockedError(_locked_message(self.folder, owner)) from None
        except OSError as error:
            file.close()
            raise CheckpointError(
                f"{self.path} cannot be locked: {error}; a file system without locks (some network ones) cannot keep "
                "two writers apart: keep the memory on a local disk"
            ) from error
        self._file = file
        _held.add(self)
        try:
            self.require_held()  # another may have removed the file between the two calls above
            self.previous = _read_owner(file)
            self._write_owner()
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Frees the lock; the second time, or in a forked child, it does nothing."""
        file, self._file = self._file, None
        _held.discard(self)
        if file is not None:
            with suppress(OSError):
                os.ftruncate(file.fileno(), 0)  # so that the next one knows that this end was an orderly one
            file.close()

    def require_held(self) -> None:
        """Does nothing where the lock is held.

        Raises:
            LockedError: it was released, belongs to the process that forked this one, or its file is not the folder's
                any more, so that another process may hold the new one.
        """
        if self._file is None:
            raise LockedError(
                f"{self.folder} is not locked by this process: it was released, or the one that forked this one has it"
            )
        own = os.fstat(self._file.fileno())
        try:
            there = os.lstat(self.path)
        except OSError as error:
            raise LockedError(
                f"the lock {self.path} is gone ({error}): the folder was moved or removed; open it again where it is"
            ) from error
        if (own.st_dev, own.st_ino) != (there.st_dev, there.st_ino):
            raise LockedError(f"the lock {self.path} was replaced by another: open the memory again")

    def keep_from_children(self, file: io.FileIO) -> None:
        """Has a file, which only the holder of this lock writes to, closed in children that this process forks."""
        self._files.add(file)

    def __enter__(self) -> "WriterLock":
        return self

    def __exit__(self, *_: Any) -> None:
        self.release()

    def _open(self) -> io.FileIO:
        # A link may lead to a file of the user's that is no lock.
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            file = io.FileIO(os.open(self.path, flags, 0o644), "r+")
        except OSError as error:
            raise CheckpointError(f"{self.folder} cannot be locked for writing: {error}") from error
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise CheckpointError(f"{self.path} is no file: remove it")
        return file

    def _write_owner(self) -> None:
        assert self._file is not None
        owner = Owner(os.getpid(), socket.gethostname(), _process_start(), time.time())
        with suppress(OSError):  # a full disk: the lock holds all the same, and says no name
            os.ftruncate(self._file.fileno(), 0)
            os.pwrite(self._file.fileno(), json.dumps(asdict(owner)).encode(), 0)


def _after_fork() -> None:
    """Gives up the child's share of each lock: the parent alone holds it, and its end alone frees it."""
    for lock in list(_held):
        for file in (lock._file, *lock._files):
            if file is not None:
                file.close()
        lock._file = None
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _locked_message(folder: Path, owner: Owner | None) -> str:
    who = "a process that has not said its name yet" if owner is None else str(owner)
    return (
        f"{folder} is being written by {who}. One process writes to a memory at a time: close it there or end that "
        "process, or open the folder for reading; the lock is free as soon as that process ends"
    )


def _read_owner(file: io.FileIO) -> Owner | None:
    """Who wrote the lock's file; None where it is empty, or says nothing that can be understood."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        values = strict_json.loads(os.pread(file.fileno(), _LONGEST, 0))
        pid, host, started, since = (values[name] for name in ("pid", "host", "started", "since"))
        numbers = [one for one in (pid, since, started) if one is not None]
        if isinstance(host, str) and all(isinstance(one, (int, float)) for one in numbers):
            return Owner(int(pid), host[:80], started, since)
    return None


def _process_start() -> float | None:
    """When this process began, in seconds since 1970; None where the system does not tell."""
    try:
        fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
        up = float(Path("/proc/uptime").read_bytes().split()[0])
        return time.time() - (up - int(fields[19]) / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError):
        return None


def _age(moment: float) -> str:
    """How long ago, in words. A clock that was set back makes it no less than nothing."""
    seconds = max(0, int(time.time() - moment))
    for word, length in _STEPS:
        if seconds >= length:
            return f"{seconds // length} {word}{'s' if seconds // length > 1 else ''}"
    return f"{seconds} s"
