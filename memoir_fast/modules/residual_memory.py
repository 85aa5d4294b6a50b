"""`ResidualMemory`: W_m, in pages, of which each edit owns k columns of one."""

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from memoir_fast import ops
from memoir_fast.checks import readable
from memoir_fast.modules.spawned import hold

# A generation that ends gives its copies back, in whatever thread, also where garbage is collected in such a block.
_giving = threading.RLock()
_HOST_CAPACITY = 64  # pages that an address range is set aside for, where that takes no memory before they are written


class ResidualMemory(nn.Module):
    """The residual weight W_m, zero at first, kept transposed: one column of W_m is one contiguous row of `weight`.

    It grows by pages of D rows: column c of page p is row p * D + c. A page that is opened lies in a table whose
    addresses were set aside before, so that neither it nor an older one moves; that a captured CUDA graph needs. On the
    CPU, addresses of 64 pages take no memory before they are written. When a table is full, one of twice the
    size takes its place, and pages move once. With `max_pages` there is room for so many from the start, and no more.

    Args:
        width (int): D, inputs of the edited layer.
        outputs (int): O, its outputs.
        dtype (torch.dtype, optional): Default: float32.
        device (torch.device, optional): Default: the CPU.
        max_pages (int, optional): the most pages, at least 1; on a GPU, memory for all of them is taken at once.
            Default: None, as many as are opened.

    Raises:
        ValueError: `max_pages` is below 1.

    Example:
        >>> import torch
        >>> from memoir_fast.modules import ResidualMemory
        >>> memory, rows = ResidualMemory(8, 3), torch.tensor([[1, 4]]).int()
        >>> memory.update(rows[0], torch.ones(1, 2), torch.ones(1, 3))
        >>> memory(torch.ones(1, 1, 8), rows, torch.zeros(1).int())
        tensor([[[2., 2., 2.]]])
        >>> second = memory.open()
        >>> memory(torch.ones(1, 1, 8), rows + 8 * second, torch.zeros(1).int())
        tensor([[[0., 0., 0.]]])
    """

    table: torch.Tensor
    """[capacity * D, O]; what lies beyond the pages that are open is not to be read."""

    def __init__(
        self,
        width: int,
        outputs: int,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        max_pages: int | None = None,
    ) -> None:
        super().__init__()
        if max_pages is not None and max_pages < 1:
            raise ValueError(f"max_pages must be at least 1, got {max_pages}")
        self.width, self.outputs, self.max_pages = width, outputs, max_pages
        self.pages = 1
        """Pages that have been opened, those given back included."""
        self._free: list[int] = []
        self._copies: set[int] = set()
        first = torch.zeros((width, outputs), dtype=dtype, device=device)
        self.register_buffer("table", self._reserved(first), persistent=False)

    @property
    def weight(self) -> torch.Tensor:
        """[pages * D, O]: all that was opened."""
        return self.table[: self.pages * self.width]

    @property
    def numbers(self) -> list[int]:
        """The pages that are open, without copies."""
        with _giving:
            out = {*self._free, *self._copies}
        return [number for number in range(self.pages) if number not in out]

    @property
    def full(self) -> bool:
        """Whether no further page can be opened."""
        return not self._free and self.pages == self.max_pages

    def page(self, number: int) -> torch.Tensor:
        """One page, [D, O]; what is written to it is written to the memory."""
        if not 0 <= number < self.pages:
            raise IndexError(f"the memory has pages 0 .. {self.pages - 1}, got {number}")
        return self.table[number * self.width : (number + 1) * self.width]

    def open(self) -> int:
        """Opens a page, of zeros, and gives its number. IndexError where there are `max_pages` already."""
        number = self._take()
        if number is None:
            if self.full:
                raise IndexError(f"all of max_pages = {self.max_pages} are open")
            open_pages = self.weight
            self.table = self._reserved(open_pages, 2 * self.pages)
            number = self._next()
        self.page(number).zero_()
        return number

    def copy_page(self, number: int) -> int | None:
        """Copies a page to another, whose number it gives; None where the table has no room: nothing is moved."""
        with _giving:
            copied = self._take()
            if copied is not None:
                self._copies.add(copied)
        if copied is not None:
            self.page(copied).copy_(self.page(number))
        return copied

    def close(self, number: int) -> None:
        """Gives a page back, of which nobody reads any more."""
        with _giving:
            self._copies.discard(number)
            self._free.append(number)

    def undo_from_here(self) -> Callable[[], None]:
        """What gives back the pages that are opened from now on; others must not be changed."""
        table, pages, free = self.table, self.pages, list(self._free)

        def undo() -> None:
            with _giving:
                self.table, self.pages = table, pages
                self._free = free + [number for number in self._free if number not in free]
            for number in free:
                self.page(number).zero_()

        return undo

    def read(self, outputs: slice | None) -> torch.Tensor:
        """The table, or those of its outputs alone, [capacity * D, outputs], where they lie."""
        return self.table if outputs is None else self.table[:, outputs]

    def forward(
        self, x: torch.Tensor, rows: torch.Tensor, route: torch.Tensor, outputs: slice | None = None
    ) -> torch.Tensor:
        """x [B, S, D], rows int32 [C, k], route int32 [B] -> [B, S, O]; see `ops.masked_linear`.

        `outputs`: which of O; None: all.
        """
        return ops.masked_linear(x, self.read(outputs), rows, route)

    def add_(
        self,
        base: torch.Tensor,
        x: torch.Tensor,
        rows: torch.Tensor,
        route: torch.Tensor,
        outputs: slice | None = None,
    ) -> torch.Tensor:
        """In place, base += forward(x, rows, route, outputs); see `ops.masked_linear_add_`."""
        return ops.masked_linear_add_(base, x, self.read(outputs), rows, route)

    def update(self, rows: torch.Tensor, a: torch.Tensor, c: torch.Tensor) -> None:
        """weight[rows] += a^T c for rows int32 [k], a [n, k], c [n, O]; see `ops.memory_update`."""
        ops.memory_update(self.weight, rows, a, c)

    def take(self, rows: torch.Tensor, values: torch.Tensor) -> None:
        """weight[rows] = values, for rows [R] and values [R, O] of any dtype and on any device."""
        self.weight[rows.long().to(self.table.device)] = values.to(self.table)

    def whole(self, number: int) -> torch.Tensor:
        """One page, as `page`, to be read only."""
        return self.page(number).detach()

    @contextmanager
    def changing(self, number: int, rows: torch.Tensor | slice) -> Iterator[torch.Tensor]:
        """Within the block, a page [D, O] of which `rows` may be changed; where it raises, they are as before."""
        page = self.page(number)
        kept = page[rows].clone()
        try:
            yield page
        except BaseException:
            page[rows] = kept
            raise

    def restore(self, weight: torch.Tensor) -> None:
        """Takes over pages [n * D, O] in place of those that there are."""
        self._make_room(len(weight) // self.width)
        self.weight.copy_(weight)  # which may lie there already

    def empty(self, pages: int, but: torch.Tensor | None = None) -> None:
        """Makes the memory one of so many pages of zeros. IndexError where there may not be as many.

        Rows `but` [R] hold anything, until they are written.
        """
        if self.max_pages is not None and pages > self.max_pages:
            raise IndexError(f"{pages} pages are more than max_pages = {self.max_pages}")
        self._make_room(pages)
        if but is None:
            self.weight.zero_()
        else:
            rest = torch.ones(len(self.weight), dtype=torch.bool)
            rest[but.long()] = False
            self.weight.index_fill_(0, rest.nonzero().flatten().to(self.table.device), 0)

    def _make_room(self, pages: int) -> None:
        """Room for so many pages, and, where addresses take no memory, for as many again: the next moves none then."""
        self._free, self._copies = [], set()
        wanted = 2 * pages if self.max_pages is None and readable(self.table) else pages
        if wanted * self.width > len(self.table):
            try:
                self.table = self._reserved(self.table[:0], wanted)
            except RuntimeError:  # a system that promises no more memory than it has
                self.table = self._reserved(self.table[:0], pages)
        self.pages = pages

    def _take(self) -> int | None:
        """A page that was given back, or the next of the table; None where it has none."""
        with _giving:
            if self._free:
                return self._free.pop()
        return self._next() if (self.pages + 1) * self.width <= len(self.table) else None

    def _next(self) -> int:
        self.pages += 1
        return self.pages - 1

    def _reserved(self, pages: torch.Tensor, least: int = 1) -> torch.Tensor:
        """A table that begins with `pages` [n * D, O], of room for `least` pages or more."""
        capacity = self.max_pages or max(least, _HOST_CAPACITY if readable(pages) else 1)
        shape = (max(capacity * self.width, len(pages)), self.outputs)
        if shape == pages.shape:
            return pages
        if readable(pages):  # torch.empty would write to it in torch's deterministic mode
            storage = torch.UntypedStorage(shape[0] * shape[1] * pages.element_size())
            table = torch.empty(0, dtype=pages.dtype).set_(storage, 0, shape)  # type: ignore[call-overload]
        else:
            table = pages.new_empty(shape)
        table[: len(pages)] = pages
        return table

    def _apply(self, fn: Any, recurse: bool = True) -> "ResidualMemory":
        """Moves the open pages to another device or type; a copy of the whole table would take memory for all of it."""
        moved = fn(self.weight.clone())
        if moved.is_shared() and moved.device.type == "cpu":
            self.table = moved
        elif moved.device != self.table.device or moved.dtype != self.table.dtype:
            self.table = self._reserved(moved)
        return self

    def __getstate__(self) -> dict[str, Any]:
        pages = self.weight.clone()
        hold(pages)
        return {**self._rest(), "_buffers": {"table": pages}}

    def _rest(self) -> dict[str, Any]:
        """What it has besides its pages; copies that views read are free to a copy."""
        state: dict[str, Any] = super().__getstate__()
        return {**state, "_free": [*self._free, *self._copies], "_copies": set(), "_buffers": {}}

    def __deepcopy__(self, memo: dict[int, Any]) -> "ResidualMemory":
        """Writes the pages once: by way of `__getstate__`, Python would have four of each in memory."""
        other = memo[id(self)] = type(self).__new__(type(self))
        super(ResidualMemory, other).__setstate__(copy.deepcopy(self._rest(), memo))  # type: ignore[no-untyped-call]
        table = other._reserved(self.weight)
        other._buffers["table"] = table.clone() if table.data_ptr() == self.table.data_ptr() else table
        return other

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.table = self._reserved(self.table)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[prefix + "weight"] = self.weight if keep_vars else self.weight.detach()

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors):  # type: ignore[no-untyped-def]
        weight = state_dict.get(prefix + "weight")
        if weight is None:
            if strict:
                missing.append(prefix + "weight")
            return
        if weight.dim() != 2 or weight.shape[1] != self.outputs or not len(weight) or len(weight) % self.width:
            errors.append(
                f"size mismatch for {prefix}weight: expected pages of [{self.width}, {self.outputs}], "
                f"got {list(weight.shape)}"
            )
            return
        if self.max_pages is not None and len(weight) > self.max_pages * self.width:
            errors.append(f"{prefix}weight has {len(weight) // self.width} pages, max_pages is {self.max_pages}")
            return
        with torch.no_grad():
            self.restore(weight)

    def extra_repr(self) -> str:
        name = str(self.table.dtype).removeprefix("torch.")
        return f"width={self.width}, outputs={self.outputs}, pages={self.pages}, dtype={name}"
