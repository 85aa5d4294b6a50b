"""`PartMemory`: the part of W_m that one process has, where the edited layer is split over several by its inputs."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from memoir_fast import ops
from memoir_fast.checks import readable
from memoir_fast.distributed.row_parallel import NO_ROW, Part
from memoir_fast.modules.residual_memory import ResidualMemory


class PartMemory(ResidualMemory):
    """As `ResidualMemory`, of this process's inputs alone: its pages have so many rows, and its products are summands.

    Rows that sequences read are those of `Part.rows`; the rows of `take`, and pages that are `whole`, those of all D.

    Args:
        part (Part): which inputs. outputs, dtype, device, max_pages: see `ResidualMemory`.
    """

    def __init__(
        self,
        part: Part,
        outputs: int,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        max_pages: int | None = None,
    ) -> None:
        super().__init__(part.inputs, outputs, dtype, device, max_pages)
        self._part = part

    def forward(
        self, x: torch.Tensor, rows: torch.Tensor, route: torch.Tensor, outputs: slice | None = None
    ) -> torch.Tensor:
        """x [B, S, inputs], rows int32 [C, k] with `NO_ROW` behind them, route int32 [B] -> [B, S, O], a summand."""
        if not readable(rows):
            return super().forward(x, rows, _without_none(rows, route), outputs)
        table = self.read(outputs)
        parts = [x.new_zeros((1, x.shape[1], table.shape[1]))] * len(x)
        for row, own in _few(rows, route).items():
            parts[row] = ops.masked_linear(x[row : row + 1], table, own, own.new_zeros(1))
        return torch.cat(parts)

    def add_(
        self,
        base: torch.Tensor,
        x: torch.Tensor,
        rows: torch.Tensor,
        route: torch.Tensor,
        outputs: slice | None = None,
    ) -> torch.Tensor:
        """In place, base += forward(x, rows, route, outputs)."""
        if not readable(rows):
            return super().add_(base, x, rows, _without_none(rows, route), outputs)
        table = self.read(outputs)
        for row, own in _few(rows, route).items():
            one = slice(row, row + 1)
            ops.masked_linear_add_(base[one], x[one], table, own, own.new_zeros(1))
        return base

    def take(self, rows: torch.Tensor, values: torch.Tensor) -> None:
        """As `ResidualMemory.take`, of which it keeps its own rows."""
        own, mine = self._part.own(rows.long())
        super().take(mine, values[own])

    def whole(self, number: int) -> torch.Tensor:
        """As `ResidualMemory.whole`; collective."""
        return self._part.gathered(self.page(number), dim=0)

    @contextmanager
    def changing(self, number: int, rows: torch.Tensor | slice) -> Iterator[torch.Tensor]:
        """As `ResidualMemory.changing`, of a page that is put together, and kept in part where nothing raises."""
        page = self.whole(number)
        yield page
        self.page(number).copy_(page[self._part.first : self._part.last])


def _few(rows: torch.Tensor, route: torch.Tensor) -> dict[int, torch.Tensor]:
    """On the CPU, whose kernels take no row that is none: per sequence that reads any, its rows, int32 [1, k']."""
    found = {}
    for row, edit in enumerate(route.tolist()):
        own = rows[edit] if edit >= 0 else rows[:0].flatten()
        own = own[own < NO_ROW]
        if len(own):
            found[row] = own[None]
    return found


def _without_none(rows: torch.Tensor, route: torch.Tensor) -> torch.Tensor:
    """On a device, which passes over rows that are none behind the first: those that begin so are read by nobody."""
    return torch.where((route >= 0) & (rows[route.clamp(min=0).long(), 0] == NO_ROW), -1, route)
