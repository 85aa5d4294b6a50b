"""`ShardedRows`: a store's rows of bits, each on one of several processes, and the search among all of them."""

from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from memoir_fast.checks import tensor
from memoir_fast.mask_format import words
from memoir_fast.modules import growing
from memoir_fast.modules.search import best_row

_FIRST_CAPACITY = 64
_LARGEST = 2**32 - 1  # of the lower half of a packed answer


class ShardedRows(nn.Module):
    """Rows of bits, masks or routing codes, with a threshold each: process r of n has rows r, r + n, r + 2 n, ...

    For stores that are too large for one device, or to be searched faster than one can: each process scans its own
    rows, and one all-reduce of 8 bytes per query finds the best of all. The answer is that of one process with all the
    rows, the lowest row among equals included. All processes make the same calls with the same arguments, in order.

    Args:
        width (int): D, bits of a row.
        group: the processes; see `torch.distributed.new_group`. Default: all.
        device (torch.device, optional): where the rows lie. Default: the CPU.

    Example:
        >>> import torch
        >>> import torch.distributed as dist
        >>> from memoir_fast.modules.sharded_rows import ShardedRows
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> rows = ShardedRows(128)
        >>> rows.extend(torch.tensor([[3, 0, 0, 0], [7, 0, 0, 0]]).int(), torch.tensor([2, 3]).int())
        range(0, 2)
        >>> rows.match(torch.tensor([[7, 0, 0, 0], [3, 0, 0, 0], [8, 0, 0, 0]]).int())
        (tensor([ 1,  0, -1], dtype=torch.int32), tensor([3, 2, 0], dtype=torch.int32))
        >>> dist.destroy_process_group()
    """

    rows: torch.Tensor
    """int32 [C, W], this process's own."""
    min_overlap: torch.Tensor
    """int32 [C], the bits that a query must share with each of them to match it."""
    count: torch.Tensor
    """int32 [], how many of them are in use."""

    def __init__(self, width: int, group: Any = None, device: torch.device | None = None) -> None:
        super().__init__()
        self.width, self.group = width, group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.register_buffer("rows", torch.zeros((_FIRST_CAPACITY, words(width)), dtype=torch.int32, device=device))
        self.register_buffer("min_overlap", torch.ones(_FIRST_CAPACITY, dtype=torch.int32, device=device))
        self.register_buffer("count", torch.zeros((), dtype=torch.int32, device=device))
        self._total = 0

    def __len__(self) -> int:
        """Rows of all processes."""
        return self._total

    def extend(self, rows: torch.Tensor, min_overlap: torch.Tensor) -> range:
        """Adds rows int32 [N, W] with thresholds int32 [N], at least 1, and gives their numbers."""
        tensor("rows", rows, torch.int32, "N W", W=self.rows.shape[1])
        tensor("min_overlap", min_overlap, torch.int32, "N", N=len(rows))
        if len(rows) and int(min_overlap.min()) < 1:
            raise ValueError(f"min_overlap must be at least 1, got {int(min_overlap.min())}")
        first, used = self._total, self._own(self._total)
        own = slice((self.rank - first) % self.size, None, self.size)
        last = used + len(rows[own])
        if last > len(self.rows):
            self._grow(max(last, 2 * len(self.rows)))
        self.rows[used:last], self.min_overlap[used:last] = rows[own], min_overlap[own]
        self.count.fill_(last)
        self._total += len(rows)
        return range(first, self._total)

    def set_min_overlap(self, bits: int, number: int) -> None:
        """The threshold of one row, at least 1. IndexError where there is none of that number."""
        if bits < 1:
            raise ValueError(f"min_overlap must be at least 1, got {bits}")
        if self._has(number):
            self.min_overlap[number // self.size] = bits

    def delete(self, number: int) -> None:
        """The row matches nothing from now on; its number is not given again. IndexError where there is none."""
        if self._has(number):
            self.rows[number // self.size] = 0

    def match(self, query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The best row of all processes for each query, of those that reach their own threshold; collective.

        Args:
            query (Tensor): int32 [B, W], the same on all processes.

        Returns:
            row int32 [B] or -1, overlap int32 [B]: without a match, the largest with any row. See `best_row`.
        """
        row, overlap = best_row(query, self.rows, self.count, self.min_overlap)
        number = row.long() * self.size + self.rank
        # One number orders all answers: whether it matches, its overlap, and how low its row is.
        packed = (overlap.long() << 32) + torch.where(row >= 0, (1 << 62) + _LARGEST - number, 0)
        dist.all_reduce(packed, dist.ReduceOp.MAX, group=self.group)
        best = torch.where(packed >= 1 << 62, _LARGEST - (packed & _LARGEST), -1)
        return best.int(), ((packed >> 32) & (2**30 - 1)).int()

    def _has(self, number: int) -> bool:
        """Whether a row is this process's."""
        if not 0 <= number < self._total:
            raise IndexError(f"there are rows 0 .. {self._total - 1}, got {number}")
        return number % self.size == self.rank

    def _own(self, total: int) -> int:
        """How many of so many rows are this process's."""
        return (total - self.rank + self.size - 1) // self.size

    def _grow(self, capacity: int) -> None:
        used = self._own(self._total)
        self.rows = growing.grown(self.rows, used, capacity)
        self.min_overlap = growing.grown(self.min_overlap, used, capacity, 1)

    def extra_repr(self) -> str:
        return f"width={self.width}, rows={self._total}, processes={self.size}"
