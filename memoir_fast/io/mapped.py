"""Tensors that lie in a mapped file, gone through so that little of the file is in memory at once."""

import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from memoir_fast.modules.huge_pages import advise

_MAPS = Path("/proc/self/maps")
_AT_ONCE = 1 << 22  # bytes


def pieces(values: torch.Tensor, at_once: int = _AT_ONCE, sizes: Sequence[int] | None = None) -> Iterator[torch.Tensor]:
    """The rows of a tensor on the CPU, contiguous, some `at_once` bytes of them at a time, or as many as `sizes` say.

    Each piece must be done with when the next is asked for. Where the tensor lies in a mapped file, and is not written
    to, the system then drops its copy of the piece, and reads it from the file again if it is looked at once more.

    Example:
        >>> import torch
        >>> [len(piece) for piece in pieces(torch.zeros(5, 4), at_once=32)]
        [2, 2, 1]
    """
    step = max(1, at_once * len(values) // max(1, values.nbytes))
    mapped = values.nbytes > at_once and in_file(values)
    for piece in values.split(step if sizes is None else [*sizes]) if len(values) else ():
        yield piece
        if mapped:
            begin = -(-piece.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
            end = (piece.data_ptr() + piece.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
            advise("MADV_DONTNEED", begin, end - begin)


def in_file(values: torch.Tensor) -> bool:
    """Whether all of a tensor lies in one mapping of a file; False where the system does not say."""
    first, last = values.data_ptr(), values.data_ptr() + values.nbytes
    try:
        with _MAPS.open(encoding="utf-8", errors="surrogateescape") as lines:  # a name may be any bytes
            for line in lines:
                place, _, _, _, inode, *_ = line.split()
                begin, end = (int(address, 16) for address in place.split("-"))
                if begin <= first < end:
                    return inode != "0" and last <= end
    except (OSError, ValueError):
        pass
    return False
