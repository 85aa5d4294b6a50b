"""`Part`: what one process has of a linear layer that is split by its inputs over several (row-parallel)."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from memoir_fast.errors import MemoirError, UnsupportedModelError

NO_ROW = 2**31 - 1
"""Stands behind the rows that a process has of an edit, which are fewer than the edit's k."""


class Part:
    """The inputs first .. last - 1, of D, of a row-parallel layer, which is what this process has of it.

    Every process has all O outputs of its own inputs; the layer's output is their sum over the processes. All processes
    make the same calls in the same order; those that are collective say so.

    Args:
        width (int): D. rank, size (int): which process this is, of how many.
        group: what collective calls go through; see `torch.distributed.new_group`.

    Raises:
        UnsupportedModelError: a process has no inputs.

    Example:
        >>> import torch
        >>> from memoir_fast.distributed.row_parallel import Part
        >>> part = Part(width=12, rank=1, size=3)
        >>> part.first, part.last
        (4, 8)
        >>> part.rows(torch.tensor([[25, 28, 31]]).int(), page=torch.tensor([[2]]).int()).tolist()
        [[8, 11, 2147483647]]
    """

    def __init__(self, width: int, rank: int, size: int, group: Any = None) -> None:
        self.width, self.rank, self.size, self.group = width, rank, size, group
        self._most = -(-width // size)
        bounds = [min(width, self._most * one) for one in range(size + 1)]
        self._inputs = [last - first for first, last in zip(bounds[:-1], bounds[1:], strict=True)]
        self.first, self.last = bounds[rank], bounds[rank + 1]
        if 0 in self._inputs:
            raise UnsupportedModelError(f"{size} processes are too many for the edited layer's {width} inputs")

    @classmethod
    def of(cls, weight: Any) -> "Part":
        """That of a weight [O, D], a DTensor.

        UnsupportedModelError where it is not split along its inputs, by a mesh of one dimension.
        """
        from torch.distributed.tensor import Shard

        mesh = weight.device_mesh
        if mesh.ndim != 1 or weight.placements not in ((Shard(1),), (Shard(-1),)) or weight.dim() != 2:
            raise UnsupportedModelError(
                f"the edited layer's weight {list(weight.shape)} must be split over processes by its inputs alone, "
                f"which is Shard(1) on a mesh of one dimension, got {weight.placements} on {mesh}. Tensor parallelism "
                'by transformers\' "rowwise" does so; weights that FSDP splits are not served'
            )
        group: Any = mesh.get_group()
        return cls(int(weight.shape[1]), dist.get_rank(group), dist.get_world_size(group), group)

    @property
    def inputs(self) -> int:
        """How many inputs are this process's."""
        return self.last - self.first

    def product(self, layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        """What this process adds to the layer's output, [..., O], for its own inputs x [..., inputs]; without bias."""
        if x.shape[-1] != self.inputs:
            raise UnsupportedModelError(
                f"the edited layer must be given this process's {self.inputs} of its {self.width} inputs, got "
                f'{x.shape[-1]}: its plan must be "rowwise", behind layers that are "colwise"'
            )
        weight: Any = layer.weight
        return F.linear(x, weight.to_local())

    def summed(self, layer: nn.Linear, y: torch.Tensor) -> torch.Tensor:
        """The layer's output, from what each process adds to it; collective. y is not to be used any more."""
        if torch.is_grad_enabled() and y.requires_grad:
            y = _Summed.apply(y, self.group)
        else:
            dist.all_reduce(y, group=self.group)
        bias: Any = layer.bias
        return y if bias is None else y + (bias.to_local() if hasattr(bias, "to_local") else bias)

    def gathered(self, own: torch.Tensor, dim: int = -1) -> torch.Tensor:
        """All D inputs along a dimension, from each process's own; collective."""
        last = own.movedim(dim, -1)
        padded = F.pad(last, (0, self._most - self.inputs)).contiguous()
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded, group=self.group)
        whole = [part[..., :inputs] for part, inputs in zip(parts, self._inputs, strict=True)]
        return torch.cat(whole, dim=-1).movedim(-1, dim)

    def agreed(self, tensor: torch.Tensor) -> torch.Tensor:
        """The first process's tensor, on every process; collective. So what is decided by it is the same everywhere."""
        common = tensor.detach().clone(memory_format=torch.contiguous_format)
        dist.broadcast(common, group=self.group, group_src=0)
        return common

    def once(self, run: Callable[[], None]) -> None:
        """Runs something on the first process alone; what it raises is raised on all. Collective."""
        failed: list[Exception | None] = [None]
        if self.rank == 0:
            try:
                run()
            except Exception as error:
                failed = [error]
        dist.broadcast_object_list(failed, group=self.group, group_src=0)
        if failed[0] is not None:
            raise failed[0]

    def rows(self, rows: torch.Tensor, page: torch.Tensor) -> torch.Tensor:
        """The rows of this process's memory among those of an edit.

        Args:
            rows (Tensor): int32 [B, k], ascending, of the whole memory: column + D * page. page (Tensor): int32 [B, 1],
                on which page they are; a row of another page, as a deleted edit has, is none of any process.

        Returns:
            int32 [B, min(k, inputs)], ascending, with `NO_ROW` behind the last.
        """
        inputs = rows - (self.width * page + self.first)
        own = (inputs >= 0) & (inputs < self.inputs)
        found = torch.where(own, inputs + self.inputs * page, NO_ROW)
        return found.sort(dim=1).values[:, : min(rows.shape[1], self.inputs)].contiguous()

    def own(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Which of rows int64 [R] of the whole memory, column + D * page, are this process's, and where it has them.

        Returns:
            bool [R]; int64 [those], rows of this process's memory.
        """
        page, column = rows // self.width, rows % self.width
        own = (column >= self.first) & (column < self.last)
        return own, column[own] - self.first + self.inputs * page[own]

    def __reduce__(self) -> Any:
        raise MemoirError(
            "a memory whose layer is split over processes cannot be copied or sent: save_pretrained it, and load that"
        )


def is_split(tensor: object) -> bool:
    """Whether a tensor is one of torch.distributed's, of which each process has a part."""
    return any(kind.__name__ == "DTensor" for kind in type(tensor).__mro__)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor of which this process may have a part; collective if so."""
    given: Any = tensor
    return given.full_tensor() if is_split(tensor) else tensor


class _Summed(torch.autograd.Function):
    """The sum over processes. What is computed of it is the same on all, so its gradient is each summand's."""

    @staticmethod
    def forward(ctx: Any, y: torch.Tensor, group: Any) -> torch.Tensor:
        total = y.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grads[0], None
