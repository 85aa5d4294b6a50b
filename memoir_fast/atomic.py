"""Puts a set of files into a folder so that a crash or a full disk at any moment leaves the old set readable."""

import fcntl
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path


def publish(folder: Path, data: Mapping[str, bytes], index: str, content: bytes, owned: re.Pattern[str]) -> None:
    """Writes `data`, then `index`, which names them: a reader sees the old set or the new one, never a mixture.

    Everything is written beside and synced; moving `index` into place is the one commit point. Only then are the
    files of earlier sets removed: those whose names match `owned`. A save that fails leaves the folder as it was.

    Args:
        folder (Path): made where it does not exist.
        data (mapping of str to bytes): files whose names no other content ever has, e.g. by a digest in the name.
        index (str): name of the file that readers open first.
        content (bytes): what `index` shall hold.
        owned (re.Pattern): matches, in full, the names of data files and of what a crash may leave (see `leftover`).

    Raises:
        OSError: no room, no permission, or `folder` is a file.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder, shared=False) as descriptor:
            before = set(os.listdir(folder))
            try:
                for name, value in data.items():
                    replace(folder / name, value)
                os.fsync(descriptor)
                replace(folder / index, content)
            except BaseException:
                if not _holds(folder / index, content):  # an interrupt may come just after the commit
                    for name in set(data) - before:
                        (folder / name).unlink(missing_ok=True)
                raise
            os.fsync(descriptor)
            for name in before - set(data):
                if owned.fullmatch(name):
                    with suppress(OSError):
                        (folder / name).unlink()
    except BaseException:
        if made:
            with suppress(OSError):
                folder.rmdir()
        raise
    if made:
        _sync(folder.parent)


@contextmanager
def locked(folder: Path, *, shared: bool) -> Iterator[int]:
    """Holds the folder's lock and yields its descriptor: one writer, or any number of readers, at a time.

    The system frees the lock when the process ends, however it ends. File systems without locks go without.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def leftover(name: str) -> str:
    """A regular expression for what a crash may leave of a file whose name matches `name`."""
    return rf"\.{name}\.[0-9a-f]{{8}}\.tmp"


def replace(path: Path, content: bytes) -> None:
    """Writes a file beside its place and moves it there: the old one stays readable until the new one is whole."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(beside, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _holds(path: Path, content: bytes) -> bool:
    try:
        return path.read_bytes() == content
    except OSError:
        return False


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
