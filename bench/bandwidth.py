"""How fast this machine's memory can be read and copied: the ceiling that a row's bytes are held against.

No single kernel reaches the bandwidth at every size, so several move the same bytes, in turns with what is measured,
and the best block of the best kernel counts. They run in as many threads as torch has, but for numpy's, which has one.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from memoir_fast import backends

CEILING = "ceiling: "  # begins the name of a contender that moves bytes and does nothing else
MOST_TRUSTED = 1.05
"""A share above this says that the ceiling was not reached by those who measured it: it is no share."""

_ROW_WORDS = 448  # of the masks that the scan is given: those of D = 14336
_LEAST_BYTES = 4 * _ROW_WORDS


class Mover(NamedTuple):
    """A kernel that does nothing but move `bytes` bytes."""

    run: Callable[[int], object]
    bytes: int


class Bandwidth(NamedTuple):
    """The best block of the best kernel."""

    kernel: str
    bytes: int
    bytes_per_second: float
    blocks: int


def movers(kind: str, size: int, source: torch.Tensor, target: torch.Tensor) -> dict[str, Mover]:
    """Kernels on the CPU that read (`kind` is `read`) or copy about `size` bytes, by name.

    Args:
        kind (str): `read` or `copy`. A copy, which reads one half and writes the other, counts as reading too.
        size (int): bytes to move; at most those of `source`.
        source (Tensor): float32, contiguous, of ones: what is read.
        target (Tensor): as large as `source`: what is written.
    """
    count = min(max(size, _LEAST_BYTES), source.nbytes) // 16 * 4
    read, half = source[:count], count // 2
    written, copied = target[:half], source[:half]
    plain = written.numpy(), copied.numpy()
    found = {
        "torch.Tensor.copy_": Mover(lambda _: written.copy_(copied), 8 * half),
        "numpy.copyto": Mover(lambda _: np.copyto(*plain), 8 * half),
    }
    if kind == "read":
        whole, (one, other) = read.view(torch.int64), read.view(2, half)
        found["torch.sum"] = Mover(lambda _: whole.sum(), 4 * count)
        found["torch.dot"] = Mover(lambda _: torch.dot(one, other), 4 * count)
        found |= _scan(read)
    return {CEILING + name: mover for name, mover in found.items()}


def _scan(read: torch.Tensor) -> dict[str, Mover]:
    """The extension's own search, where there is one."""
    search = backends.load("mask_match", "cpu")
    if isinstance(search, str):
        return {}
    store = read[: len(read) // _ROW_WORDS * _ROW_WORDS].view(torch.int32).view(-1, _ROW_WORDS)
    query, rows = store[:1].clone(), torch.tensor(len(store), dtype=torch.int32)
    least = torch.ones(len(store), dtype=torch.int32)
    return {"mask_match": Mover(lambda _: search.run(query, store, rows, least), store.nbytes)}


def best(samples: dict[str, list[float]], moved: dict[str, Mover]) -> Bandwidth | None:
    """The highest bandwidth in any block of any of the kernels; None where none of them is among the samples."""
    rates = {name: moved[name].bytes / min(samples[name]) for name in moved if samples.get(name)}
    if not rates:
        return None
    name = max(rates, key=rates.__getitem__)
    return Bandwidth(name.removeprefix(CEILING), moved[name].bytes, rates[name], len(samples[name]))


def share(rate: float, ceiling: Bandwidth | None) -> float | None:
    """`rate` in bytes per second as a share of the ceiling; None where there is none, or none to be trusted."""
    if ceiling is None or rate > MOST_TRUSTED * ceiling.bytes_per_second:
        return None
    return rate / ceiling.bytes_per_second
