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
    advise = _advise()
    on_host = type(found) is torch.Tensor and found.device.type == "cpu"
    if advise is not None and on_host and found.nbytes >= LEAST_BYTES:
        begin = -(-found.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        advise(begin, found.data_ptr() + found.nbytes - begin)
    return found.zero_()


@functools.cache
def _advise() -> Callable[[int, int], object] | None:
    """`madvise(address, bytes, MADV_HUGEPAGE)`; None where the system has no such thing."""
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is None:
        return None
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return lambda address, size: madvise(address, size, advice)
