"""`masked_linear`: the residual memory's product over each sequence's active columns."""

from collections.abc import Callable
from typing import Any

import torch

from memoir_fast import backends, checks
from memoir_fast.ops.linear_limits import on_cpu, on_gpu
from memoir_fast.ops.registration import register
from memoir_fast.reference import masked_linear as in_torch


def _check(x: torch.Tensor, memory: torch.Tensor, columns: torch.Tensor, route: torch.Tensor) -> None:
    checks.tensor("x", x, checks.FLOATS, "B S D")
    checks.tensor("memory", memory, x.dtype, "R O")
    if not x.shape[2] or not memory.shape[0] or memory.shape[0] % x.shape[2]:
        raise ValueError(f"memory must be whole pages of D = {x.shape[2]} rows, got {checks.describe(memory)}")
    checks.tensor("columns", columns, torch.int32, "C k")
    checks.tensor("route", route, torch.int32, "B", B=x.shape[0])
    checks.same_device(x=x, memory=memory, columns=columns, route=route)
    if not 1 <= columns.shape[1] <= x.shape[2]:
        raise ValueError(f"columns must be int32 [C, k] with 1 <= k <= D = {x.shape[2]}, got {list(columns.shape)}")
    checks.index_range("route", route, -1, columns.shape[0])
    if checks.readable(route) and checks.readable(columns):
        for edit in set(route.tolist()) - {-1}:
            own = columns[edit]
            page = int(own[0]) - int(own[0]) % x.shape[2]
            checks.index_range("columns", own, 0, memory.shape[0])
            checks.index_range(f"columns of edit {edit}, all on one page,", own, page, page + x.shape[2])


def _check_add(
    base: torch.Tensor, x: torch.Tensor, memory: torch.Tensor, columns: torch.Tensor, route: torch.Tensor
) -> None:
    _check(x, memory, columns, route)
    checks.tensor("base", base, x.dtype, "B S O", B=x.shape[0], S=x.shape[1], O=memory.shape[1])
    checks.same_device(base=base, x=x)


def _check_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    memory: torch.Tensor,
    columns: torch.Tensor,
    route: torch.Tensor,
    need_x: bool,
    need_memory: bool,
) -> None:
    _check(x, memory, columns, route)
    checks.tensor("grad", grad, x.dtype, "B S O", B=x.shape[0], S=x.shape[1], O=memory.shape[1])
    checks.same_device(grad=grad, x=x)


def _fake(x: torch.Tensor, memory: torch.Tensor, columns: torch.Tensor, route: torch.Tensor) -> torch.Tensor:
    return x.new_empty((x.shape[0], x.shape[1], memory.shape[1]))


def _fake_add(*_: torch.Tensor) -> None:
    return None


def _fake_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    memory: torch.Tensor,
    columns: torch.Tensor,
    route: torch.Tensor,
    need_x: bool,
    need_memory: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        x.new_empty(x.shape if need_x else (0,)),
        memory.new_empty(memory.shape if need_memory else (0,)),
    )


def _triton() -> tuple[Callable[..., Any], Callable[..., str | None]]:
    from memoir_fast.kernels import masked_linear as kernels

    return kernels.masked_linear, kernels.unsupported


def _triton_add() -> tuple[Callable[..., Any], Callable[..., str | None]]:
    from memoir_fast.kernels import masked_linear as kernels

    return kernels.masked_linear_add_, kernels.unsupported


def _triton_backward() -> tuple[Callable[..., Any], Callable[..., str | None]]:
    from memoir_fast.kernels import masked_linear as kernels

    return kernels.masked_linear_backward, kernels.unsupported


_TENSORS = "Tensor x, Tensor memory, Tensor columns, Tensor route"
_no_gradient = register(
    "masked_linear",
    f"({_TENSORS}) -> Tensor",
    _check,
    _fake,
    reference=in_torch.masked_linear,
    triton=_triton,
    cpu=on_cpu(in_torch.masked_linear),
    cuda=on_gpu(),
)
_add = register(
    "masked_linear_add_",
    f"(Tensor(a!) base, {_TENSORS}) -> ()",
    _check_add,
    _fake_add,
    reference=in_torch.masked_linear_add_,
    triton=_triton_add,
    cpu=on_cpu(in_torch.masked_linear_add_),
    cuda=on_gpu(),
)
register(
    "masked_linear_backward",
    f"(Tensor grad, {_TENSORS}, bool need_x, bool need_memory) -> (Tensor, Tensor)",
    _check_backward,
    _fake_backward,
    reference=in_torch.masked_linear_backward,
    triton=_triton_backward,
)
_op = torch.ops.memoir_fast.masked_linear.default
_backward = torch.ops.memoir_fast.masked_linear_backward.default


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs)
    ctx.backend = backends.requested()  # backward may run on a thread of its own, where no choice is in force


def _backward_formula(ctx, grad):  # type: ignore[no-untyped-def]
    need_x, need_memory = ctx.needs_input_grad[:2]
    with backends.use(ctx.backend):
        grad_x, grad_memory = _backward(grad, *ctx.saved_tensors, need_x, need_memory)
    return grad_x if need_x else None, grad_memory if need_memory else None, None, None


torch.library.register_autograd("memoir_fast::masked_linear", _backward_formula, setup_context=_setup_context)


def masked_linear(x: torch.Tensor, memory: torch.Tensor, columns: torch.Tensor, route: torch.Tensor) -> torch.Tensor:
    """What the residual memory adds to the layer's output, per sequence along the columns of its matched edit.

    y[b, s] = sum over r in columns[route[b]] of x[b, s, r mod D] * memory[r], accumulated in float32 (float64 for
    float64) in a fixed order; exactly 0 where route is -1. Memory is pages of D rows, and an edit's rows lie on one of
    them; a page that no route names is not read. Differentiable in x and memory; memory's gradient is zero outside
    the active rows.

    Args:
        x (Tensor): layer input, float16/bfloat16/float32/float64 [B, S, D].
        memory (Tensor): W_m transposed, x's dtype, [P * D, O], P >= 1 pages: one column of W_m is one contiguous row.
        columns (Tensor): int32 [C, k], each edit's rows of memory, ascending and free of repeats, on one page: column c
            of page p is p * D + c. On a device, what is no row of the page of an edit's first is passed over; on the
            CPU it raises.
        route (Tensor): int32 [B], the edit of each sequence, or -1. On a device, a value outside [-1, C) counts as
            -1; on the CPU it raises.

    Returns:
        Tensor: y, x's dtype, [B, S, O].

    Raises:
        TypeError, ValueError: on a wrong dtype, shape or device, or an index out of range.

    For each distinct route: bytes k * O * itemsize of memory; operations 2 * S * k * O per sequence.

    Example:
        >>> import torch
        >>> from memoir_fast.ops import masked_linear
        >>> x, memory = torch.tensor([[[1.0, 10.0, 100.0]]] * 2), torch.tensor([[1.0], [2.0], [3.0]])
        >>> masked_linear(x, memory, torch.tensor([[0, 2]]).int(), torch.tensor([0, -1]).int()).flatten()
        tensor([301.,   0.])
        >>> memory = torch.cat([memory, -memory])
        >>> masked_linear(x, memory, torch.tensor([[0, 2], [3, 5]]).int(), torch.tensor([0, 1]).int()).flatten()
        tensor([ 301., -301.])
    """
    if torch.is_grad_enabled() and (x.requires_grad or memory.requires_grad):
        return _op(x, memory, columns, route)
    return _no_gradient(x, memory, columns, route)


def masked_linear_add_(
    base: torch.Tensor, x: torch.Tensor, memory: torch.Tensor, columns: torch.Tensor, route: torch.Tensor
) -> torch.Tensor:
    """In-place `base += masked_linear(x, memory, columns, route)`; sequences without a route keep every bit.

    Args:
        base (Tensor): output of the base layer, x's dtype, [B, S, O]; changed in place. The sum is rounded once.
        x, memory, columns, route: as in `masked_linear`. Not differentiable.

    Returns:
        Tensor: base.

    Raises:
        TypeError, ValueError: as in `masked_linear`.

    Example:
        >>> import torch
        >>> from memoir_fast.ops import masked_linear_add_
        >>> base, x, memory = torch.ones(1, 1, 1), torch.tensor([[[2.0, 3.0]]]), torch.tensor([[5.0], [7.0]])
        >>> masked_linear_add_(base, x, memory, torch.tensor([[1]]).int(), torch.tensor([0]).int()).item()
        22.0
    """
    _add(base, x, memory, columns, route)
    return base
