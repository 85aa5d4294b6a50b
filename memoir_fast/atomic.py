"""Puts a set of files into a folder so that a crash or a full disk at any moment leaves the old set readable."""

import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows has no such locks, and opens no folders
    fcntl = None

Bytes = bytes | memoryview


def publish(
    folder: Path, data: Mapping[str, Iterable[Bytes] | bytes], index: str, content: bytes, owned: re.Pattern[str]
) -> None:
    """Writes `data`, then `index`, which names them: a reader sees the old set or the new one, never a mixture.

    Everything is written beside and synced; moving `index` into place is the one commit point. Only then are the
    files of earlier sets removed: those whose names match `owned`. A save that fails leaves the folder as it was.

    Args:
        folder (Path): made where it does not exist.
        data (mapping of str to bytes, or to an iterable of such): files whose names no other content ever has, e.g. by
            a digest in the name.
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
                _sync(descriptor)
                replace(folder / index, content)
            except BaseException:
                if not _holds(folder / index, content):  # an interrupt may come just after the commit
                    for name in set(data) - before:
                        (folder / name).unlink(missing_ok=True)
                raise
            _sync(descriptor)
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
        sync_names(folder.parent)


@contextmanager
def locked(folder: Path, *, shared: bool) -> Iterator[int | None]:
    """Holds the folder's lock and yields its descriptor: one writer, or any number of readers, at a time.

    The system frees the lock when the process ends, however it ends. File systems without locks go without; so does
    Windows, where there is no descriptor either.
    """
    with _opened(folder) as descriptor:
        if fcntl is not None:
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield descriptor


def leftover(name: str) -> str:
    """A regular expression for what a crash may leave of a file whose name matches `name`."""
    return rf"\.{name}\.[0-9a-f]{{8}}\.tmp"


def clear(folder: Path, left: re.Pattern[str]) -> None:
    """Removes what crashes left in a folder that only the caller may write to: files whose names match `left` in full.

    What cannot be removed stays.
    """
    with suppress(OSError), locked(folder, shared=False):  # a save to a folder that nobody has opened holds this lock
        for name in os.listdir(folder):
            if left.fullmatch(name):
                with suppress(OSError):
                    (folder / name).unlink()


def replace(path: Path, content: Iterable[Bytes] | bytes) -> None:
    """Writes a file beside its place and moves it there: the old one stays readable until the new one is whole."""
    with replacing(path) as file:
        file.writelines([content] if isinstance(content, bytes) else content)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """As `replace`, of what the block writes to the file that it is given; where it raises, the old file stays."""
    beside = _beside(path)
    try:
        with open(beside, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


@contextmanager
def filling(target: Path) -> Iterator[Path]:
    """A folder beside `target` for the block to fill, which is moved there at its end; where it raises, none is left.

    What killed processes left of such folders goes before. One that somebody is filling is locked, and stays; where
    there are no locks, all stay.

    Args:
        target (Path): absolute; not there yet, or an empty folder.

    Raises:
        OSError: it cannot be made there.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _clear_folders(target.parent, re.compile(leftover(re.escape(target.name))))
    beside = _beside(target)
    beside.mkdir()
    try:
        with locked(beside, shared=True):
            yield beside
            os.replace(beside, target)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    sync_names(target.parent)


def _clear_folders(parent: Path, left: re.Pattern[str]) -> None:
    for name in os.listdir(parent):
        path = parent / name
        if fcntl is None or not left.fullmatch(name) or path.is_symlink() or not path.is_dir():
            continue
        with suppress(OSError), _opened(path) as descriptor:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def sync_names(folder: Path) -> None:
    """Makes the names in a folder last, as after `replace`."""
    with _opened(folder) as descriptor:
        _sync(descriptor)


def _holds(path: Path, content: bytes) -> bool:
    try:
        return path.is_file() and path.read_bytes() == content  # of a pipe there would be no end
    except OSError:
        return False


@contextmanager
def _opened(folder: Path) -> Iterator[int | None]:
    """A descriptor of the folder; None where the system opens none."""
    if fcntl is None:
        yield None
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _sync(descriptor: int | None) -> None:
    """Makes the names in an open folder last; None: the system has no way to."""
    if descriptor is not None:
        os.fsync(descriptor)
