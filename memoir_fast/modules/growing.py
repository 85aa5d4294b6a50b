"""Tables that grow where they lie: on the CPU, no row of a large one is copied, and none moves.

A large table lies at the beginning of a range of addresses that is as long as the machine's memory, so that it never
outgrows it. Addresses take no memory before they are written. Where a system gives no such range, as where it promises
no more memory than it has, tables double by a copy, as small ones and those of other devices do.
"""

import contextlib
import ctypes
import functools
import math
import mmap
import os
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from memoir_fast.checks import readable
from memoir_fast.modules import huge_pages

_FIXED = 0x10  # MAP_FIXED of Linux, which `mmap` has no name for


class _Range(mmap.mmap):
    """Anonymous memory that is the process's own. A tensor that lies there keeps it."""

    begin = 0
    """Where the table begins, in bytes."""
    given = 0
    """Where the largest table ended that was made there, in bytes; what comes behind was never written."""

    def has(self, nbytes: int) -> bool:
        return self.begin + nbytes <= len(self)

    def table(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        found = torch.frombuffer(self, dtype=dtype, count=math.prod(shape), offset=self.begin).view(shape)
        self.given = max(self.given, self.begin + found.nbytes)
        _ranges[found.data_ptr()] = self
        return found


_ranges: weakref.WeakValueDictionary[int, _Range] = weakref.WeakValueDictionary()  # by where their tables begin


def grown(table: torch.Tensor, used: int, capacity: int, fill: int = 0) -> torch.Tensor:
    """A table of `capacity` rows that begins with the rows in use of another; others are `fill`.

    Both are the same memory where the other is large, on the CPU, and has rows in use: what is written to one is
    written to the other. Rows of the other that are not in use are then as they were.

    Args:
        table (Tensor): [C, ...], of which `used` rows are in use.
        used (int): rows to keep, at most C.
        capacity (int): rows of the new table, at least `used`.
        fill (int): what new rows hold. Default: 0.

    Example:
        >>> import torch
        >>> from memoir_fast.modules import growing
        >>> growing.grown(torch.tensor([[1], [2], [3]]), 2, 4).flatten().tolist()
        [1, 2, 0, 0]
    """
    shape, size = (capacity, *table.shape[1:]), table.element_size() * math.prod(table.shape[1:])
    lies = _ranges.get(table.data_ptr()) if used and readable(table) else None
    if lies is not None and lies.has(size * capacity):
        old = -(-(lies.given - lies.begin) // size)
        larger = lies.table(shape, table.dtype)
        larger[len(table) : None if fill else old] = fill
        return larger
    found = _reserved() if readable(table) and size * capacity >= huge_pages.LEAST_BYTES else None
    larger = found.table(shape, table.dtype) if found else huge_pages.zeros(shape, table.dtype, table.device)
    larger[:used] = table[:used]
    if fill:
        larger[used:] = fill
    return larger


def adopted(table: torch.Tensor) -> torch.Tensor:
    """The same table with room to grow, where it lies on pages of a file; any other as it is.

    Pages of the file stay its: they are mapped once more, to be read from it when they are looked at, and to be copied,
    one by one, when they are written. Nothing may have been written to the table before.

    Args:
        table (Tensor): contiguous, on any device.
    """
    if not readable(table) or table.nbytes < huge_pages.LEAST_BYTES:
        return table
    area, map_file = _area(table.data_ptr(), table.nbytes), _map_file()
    found = None if area is None or map_file is None else _reserved()
    if area is None or map_file is None or found is None:
        return table
    start = area.offset // mmap.PAGESIZE * mmap.PAGESIZE
    end = area.offset + table.nbytes
    try:
        with area.path.open("rb") as file:
            same = os.fstat(file.fileno()).st_ino == area.inode
            if not same or not found.has(end - start) or not map_file(found, file.fileno(), start, end - start):
                return table
    except OSError:
        return table
    found.begin = area.offset - start
    last = min(-(-(end - start) // mmap.PAGESIZE) * mmap.PAGESIZE, len(found))
    found[end - start : last] = bytes(last - (end - start))  # what the file holds behind the table
    return found.table(table.shape, table.dtype)


def _reserved() -> _Range | None:
    """A range as long as the machine's memory, in huge pages where there are such; None where there is none to have."""
    try:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        found = _Range(-1, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), flags=flags)
    except (AttributeError, OSError, ValueError):
        return None
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a system without them
            found.madvise(mmap.MADV_HUGEPAGE)
    return found


class _Area(NamedTuple):
    """Where a table lies in a file that is mapped."""

    path: Path
    inode: int
    offset: int


def _area(address: int, nbytes: int) -> _Area | None:
    """The file that some addresses were mapped from, privately, and not written since; None: they are no such."""
    inside: _Area | None = None
    try:
        with open("/proc/self/smaps", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                first, *rest = line.rstrip("\n").split(maxsplit=5)
                if "-" in first and not first.endswith(":"):
                    begin, end = (int(bound, 16) for bound in first.split("-"))
                    if not begin <= address or not address + nbytes <= end or len(rest) < 5 or rest[0][3] != "p":
                        continue
                    inside = _Area(Path(rest[4]), int(rest[3]), int(rest[1], 16) + address - begin)
                elif inside is not None and first == "Anonymous:":
                    return inside if int(rest[0]) == 0 else None
    except OSError:
        pass
    return None


@functools.cache
def _map_file() -> Callable[[_Range, int, int, int], bool] | None:
    """Maps a piece of a file over the first pages of a range, privately; whether it did. None where nothing can."""
    if not os.path.exists("/proc/self/smaps"):
        return None
    system = ctypes.CDLL(None).mmap
    system.restype = ctypes.c_void_p
    system.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)

    def map_file(found: _Range, descriptor: int, start: int, nbytes: int) -> bool:
        address = torch.frombuffer(found, dtype=torch.uint8, count=1).data_ptr()
        flags = mmap.MAP_PRIVATE | _FIXED
        return bool(system(address, nbytes, mmap.PROT_READ | mmap.PROT_WRITE, flags, descriptor, start) == address)

    return map_file
