"""Opening the files of a folder that a stranger may have filled: a file, and nothing else that bears its name."""

import io
import os
import stat

from memoir_fast.errors import CheckpointError

# A pipe must not keep us waiting for its other end, a terminal not become this process's; Windows has other flags.
_FLAGS = sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY"))
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_file(path: str | os.PathLike, flags: int = os.O_RDONLY) -> io.FileIO:
    """Opens a file, unbuffered; a link to one is followed.

    Args:
        path (path): it should be a file.
        flags (int): of `os.open`: `os.O_RDONLY`, or `os.O_RDWR`, and what goes with them. Default: to be read.

    Raises:
        CheckpointError: it is a pipe, a device or a folder; nothing of it was read, or waited for.
        OSError: as `os.open`.

    Example:
        >>> import os, tempfile
        >>> from memoir_fast.io.files import open_file
        >>> path = os.path.join(tempfile.mkdtemp(), "memory_config.json")
        >>> os.mkfifo(path)
        >>> open_file(path)
        Traceback (most recent call last):
            ...
        memoir_fast.errors.CheckpointError: .../memory_config.json cannot be read: it must be a file, and is a pipe
    """
    descriptor = os.open(path, flags | _FLAGS)
    kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
    if kind != stat.S_IFREG:
        os.close(descriptor)
        raise CheckpointError(f"{path} cannot be read: it must be a file, and is {_KINDS.get(kind, 'none')}")
    return io.FileIO(descriptor, "r" if flags & (os.O_WRONLY | os.O_RDWR) == os.O_RDONLY else "r+")


def read_file(path: str | os.PathLike, most: int | None = None) -> bytes:
    """All of a file's bytes.

    Args:
        path (path): a file.
        most (int, optional): bytes that are read at most; a file may have any size and take nothing of the disk.
            Default: whatever its size is.

    Raises:
        CheckpointError: it is larger, or no file, see `open_file`.
        OSError: it cannot be read.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if most is not None and size > most:
            raise CheckpointError(f"{path} cannot be read: expected at most {most:,} bytes, got {size:,}")
        return file.readall()
