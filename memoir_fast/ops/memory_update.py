"""`memory_update`: writes an edit into its rows of the residual memory."""

from collections.abc import Callable
from typing import Any

import torch

from memoir_fast import checks
from memoir_fast.ops.registration import register
from memoir_fast.reference.memory_update import memory_update as memory_update_in_torch


def _check(memory: torch.Tensor, columns: torch.Tensor, a: torch.Tensor, c: torch.Tensor) -> None:
    checks.tensor("memory", memory, checks.FLOATS, "D O")
    checks.tensor("columns", columns, torch.int32, "k")
    checks.tensor("a", a, checks.FLOATS, "n k", k=columns.shape[0])
    checks.tensor("c", c, a.dtype, "n O", n=a.shape[0], O=memory.shape[1])
    checks.same_device(memory=memory, columns=columns, a=a, c=c)
    checks.index_range("columns", columns, 0, memory.shape[0])


def _fake(*_: torch.Tensor) -> None:
    return None


def _triton() -> tuple[Callable[..., Any], Callable[..., str | None]]:
    from memoir_fast.kernels import memory_update as kernels

    return kernels.memory_update, kernels.unsupported


register(
    "memory_update",
    "(Tensor(a!) memory, Tensor columns, Tensor a, Tensor c) -> ()",
    _check,
    _fake,
    reference=memory_update_in_torch,
    triton=_triton,
)
_op = torch.ops.memoir_fast.memory_update.default


def memory_update(memory: torch.Tensor, columns: torch.Tensor, a: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """In-place memory[columns] += a^T c: an edit learned in dual form, written to its k rows and to nothing else.

    Args:
        memory (Tensor): W_m transposed, or a page of it, float16/bfloat16/float32/float64 [D, O]; changed in place.
        columns (Tensor): int32 [k], without repeats. On a device, a column outside [0, D) is passed over; on the CPU
            it raises.
        a (Tensor): inputs of the layer at those columns, any of the float dtypes, [n, k].
        c (Tensor): dual coefficients, a's dtype, [n, O].

    Returns:
        Tensor: memory. The product is accumulated in float32 (float64 where memory or a is float64), added to the row
        and rounded once.

    Raises:
        TypeError, ValueError: on a wrong dtype, shape or device, or a column out of range.

    Bytes: itemsize * (2 * k * O) of memory, plus a and c; operations 2 * n * k * O.

    Example:
        >>> import torch
        >>> from memoir_fast.ops import memory_update
        >>> memory_update(torch.zeros(3, 1), torch.tensor([0, 2]).int(), torch.tensor([[2.0, 3.0]]), torch.ones(1, 1))
        tensor([[2.],
                [0.],
                [3.]])
    """
    _op(memory, columns, a, c)
    return memory
