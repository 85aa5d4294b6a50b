"""Host memory in pages of two megabytes, for tables that are read from end to end.

In the usual pages of four kilobytes, a search among 100,000 masks (179 MB) waits for page addresses for up to a tenth
of its time. Linux gives huge pages to those who ask before they write; it may decline, which costs nothing.
"""

import ctypes
import functools
import mmap
from collections.abc import Callable, Sequence

import torch

LEAST_BYTES = 8 << 20  # smaller tables lie in the processor's caches, where it makes no difference


def zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device | str | None = None) -> torch.Tensor:
    """`torch.zeros`, in huge pages where it is large, on the CPU, and the system has them.

    Example:
        >>> import torch
        >>> from memoir_fast.modules import huge_pages
        >>> huge_pages.zeros((2, 4), torch.int32).sum().item()
        0
    """
    found = torch.empty(shape, dtype=dtype, device=device)
    on_host = type(found) is torch.Tensor and found.device.type == "cpu"
    if on_host and found.nbytes >= LEAST_BYTES:
        begin = -(-found.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        advise("MADV_HUGEPAGE", begin, found.data_ptr() + found.nbytes - begin)
    return found.zero_()


def advise(name: str, address: int, size: int) -> None:
    """`madvise(address, size, name)`, e.g. of "MADV_HUGEPAGE"; nothing where the system has no such thing."""
    advice, call = getattr(mmap, name, None), _madvise()
    if advice is not None and call is not None and size > 0:
        call(address, size, advice)


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    found = getattr(ctypes.CDLL(None), "madvise", None) if hasattr(mmap, "MADV_NORMAL") else None
    if found is not None:
        found.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return found
