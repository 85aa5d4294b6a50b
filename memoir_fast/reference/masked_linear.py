"""The specification of `masked_linear`, its in-place form and its gradient in plain torch."""

from collections.abc import Iterator

import torch


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def routed(columns: torch.Tensor, route: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """(sequence, its active columns) for every sequence that follows an edit."""
    for row, edit in enumerate(route.tolist()):
        if 0 <= edit < len(columns):
            yield row, columns[edit].long()


def masked_linear(x: torch.Tensor, memory: torch.Tensor, columns: torch.Tensor, route: torch.Tensor) -> torch.Tensor:
    """See `memoir_fast.ops.masked_linear`."""
    y = x.new_zeros((*x.shape[:2], memory.shape[1]))
    masked_linear_add_(y, x, memory, columns, route)
    return y


def masked_linear_add_(
    base: torch.Tensor, x: torch.Tensor, memory: torch.Tensor, columns: torch.Tensor, route: torch.Tensor
) -> None:
    """See `memoir_fast.ops.masked_linear_add_`."""
    wide = _wide(x.dtype)
    for row, active in routed(columns, route):
        base[row] = base[row].to(wide) + x[row, :, active % x.shape[2]].to(wide) @ memory[active].to(wide)


def masked_linear_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    memory: torch.Tensor,
    columns: torch.Tensor,
    route: torch.Tensor,
    need_x: bool,
    need_memory: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient of `masked_linear` to x [B, S, D] and to memory [D, O]; an empty tensor for one that is not needed."""
    wide = _wide(x.dtype)
    grad_x = torch.zeros(x.shape if need_x else 0, dtype=x.dtype, device=x.device)
    grad_memory = torch.zeros(memory.shape if need_memory else 0, dtype=wide, device=x.device)
    for row, active in routed(columns, route):
        dy = grad[row].to(wide)
        if need_x:
            grad_x[row, :, active % x.shape[2]] = (dy @ memory[active].to(wide).T).to(x.dtype)
        if need_memory:
            grad_memory[active] += x[row, :, active % x.shape[2]].to(wide).T @ dy
    return grad_x, grad_memory.to(memory.dtype)
