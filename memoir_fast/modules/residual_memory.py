"""`ResidualMemory`: W_m, of which each edit owns k columns."""

import torch
from torch import nn

from memoir_fast import ops


class ResidualMemory(nn.Module):
    """The residual weight W_m, zero at first, kept transposed: one column of W_m is one contiguous row of `weight`.

    Args:
        width (int): D, inputs of the edited layer.
        outputs (int): O, its outputs.
        dtype (torch.dtype, optional): Default: float32.
        device (torch.device, optional): Default: the CPU.

    Example:
        >>> import torch
        >>> from memoir_fast.modules import ResidualMemory
        >>> memory, columns = ResidualMemory(8, 3), torch.tensor([[1, 4]]).int()
        >>> memory.update(columns[0], torch.ones(1, 2), torch.ones(1, 3))
        >>> memory(torch.ones(1, 1, 8), columns, torch.zeros(1).int())
        tensor([[[2., 2., 2.]]])
    """

    weight: torch.Tensor

    def __init__(
        self, width: int, outputs: int, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros((width, outputs), dtype=dtype, device=device))

    def forward(self, x: torch.Tensor, columns: torch.Tensor, route: torch.Tensor) -> torch.Tensor:
        """x [B, S, D], columns int32 [C, k], route int32 [B] -> [B, S, O]; see `ops.masked_linear`."""
        return ops.masked_linear(x, self.weight, columns, route)

    def add_(self, base: torch.Tensor, x: torch.Tensor, columns: torch.Tensor, route: torch.Tensor) -> torch.Tensor:
        """In place, base += forward(x, columns, route); see `ops.masked_linear_add_`."""
        return ops.masked_linear_add_(base, x, self.weight, columns, route)

    def update(self, columns: torch.Tensor, a: torch.Tensor, c: torch.Tensor) -> None:
        """weight[columns] += a^T c for columns int32 [k], a [n, k], c [n, O]; see `ops.memory_update`."""
        ops.memory_update(self.weight, columns, a, c)

    def extra_repr(self) -> str:
        width, outputs = self.weight.shape
        return f"width={width}, outputs={outputs}, dtype={str(self.weight.dtype).removeprefix('torch.')}"
