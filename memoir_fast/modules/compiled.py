"""A `MemoirLinear` in a pass that `torch.compile` has compiled: its memory is one operation, which nothing looks into.

What an edit changes, its store, pages, routes and whether anything is to be added at all, is looked at when the
operation runs, by the code that serves every other pass. So a compiled pass has no graph breaks and is not compiled
anew, whatever the memory holds.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch

from memoir_fast.errors import MemoirError
from memoir_fast.modules import tickets

_library = torch.library.Library("memoir_fast", "FRAGMENT")
_TAGS = (torch.Tag.cudagraph_unsafe,)  # a graph that is replayed calls no Python


def define(name: str, schema: str, run: Any, fake: Any) -> Any:
    """Registers an operation whose implementation is Python of ours for every device; a CUDA graph must not hold it."""
    _library.define(name + schema, tags=_TAGS)
    _library.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"memoir_fast::{name}", fake, lib=_library)
    return getattr(torch.ops.memoir_fast, name).default


@torch.compiler.assume_constant_result
def exporting() -> bool:
    """Whether `torch.export` is looking at this code.

    It is called when code is traced, since Dynamo of torch 2.10 to 2.12 takes `is_exporting` for true in all that it
    compiles.
    """
    return torch.compiler.is_exporting()


def tracing() -> bool:
    """Whether `torch.compile` is looking at this code; `torch.export` does not count."""
    return torch.compiler.is_dynamo_compiling() and not exporting()


def require_not_compiled() -> None:
    """MemoirError in a pass that is being compiled, of a memory that is added to several layers."""
    if tracing():
        raise MemoirError(
            "a model with a memory in several layers cannot be compiled: run it as it is, or give it a memory of one "
            "layer, MemoirConfig(further=())"
        )


def joined(layer: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """In a pass that is being compiled: the output of a `MemoirLinear` for inputs x, of which its base makes y."""
    ticket = None if layer.router is None else layer.router.tracing.ticket(x)
    if torch.is_grad_enabled() and (y.requires_grad or x.requires_grad):
        return y + _residual(x, y.detach(), ticket, layer.number)[0]
    _follow(y, x, ticket, layer.number)
    return y


class _Added(NamedTuple):
    """What the gradient of a residual is made of."""

    memory: Any
    routed: Any  # Routed, or None
    written: int


def found(number: int) -> Any:
    """The layer of that number. MemoirError where it is gone."""
    layer = tickets.enrolled(number)
    if layer is None:
        raise MemoirError("the memory that this pass was compiled with is gone: compile the model again")
    return layer


def _in_pass(layer: Any, ticket: torch.Tensor | None) -> AbstractContextManager[Any]:
    return nullcontext() if ticket is None else layer.router.tracing.resumed(ticket)


def _run_follow(y: torch.Tensor, x: torch.Tensor, ticket: torch.Tensor | None, number: int) -> None:
    layer = found(number)
    with _in_pass(layer, ticket):
        output = layer.joined(x, y)
    if output.data_ptr() != y.data_ptr():
        y.copy_(output)


def _run_residual(
    x: torch.Tensor, y: torch.Tensor, ticket: torch.Tensor | None, number: int
) -> tuple[torch.Tensor, torch.Tensor]:
    layer = found(number)
    if layer.replacement is not None:
        raise MemoirError("an edit cannot be learned by passes through a compiled part of the model")
    with _in_pass(layer, ticket), layer.turns.reading():
        if x.dim() == 2 and layer.router is not None:
            x = layer.router.in_rows(x)
        tokens = x.reshape(len(x), -1, x.shape[-1])
        routed, memory = layer.asked(tokens), layer.view.memory
        kept = tickets.issue(_Added(memory, routed, layer.written))
        if routed is None:
            return torch.zeros_like(y), kept
        tokens = routed.sequences(tokens)
        if routed.helped is not None:
            tokens = torch.where(routed.helped[..., None], tokens, 0)
        residual = memory(tokens.to(memory.table.dtype), routed.rows, routed.route)
    return residual.to(y.dtype).view(y.shape), kept


def _run_backward(grad: torch.Tensor, x: torch.Tensor, kept: torch.Tensor, number: int) -> torch.Tensor:
    layer, (memory, routed, written) = found(number), tickets.redeem(kept)
    if routed is None:
        return torch.zeros_like(x)
    if layer.written != written:
        raise MemoirError("the memory was changed between a compiled pass and its backward pass: run both again")
    rows, table = x.reshape(len(routed.route), -1, x.shape[-1]), memory.table
    back, _ = torch.ops.memoir_fast.masked_linear_backward.default(
        grad.reshape(*rows.shape[:2], -1).to(table.dtype).contiguous(),
        rows.to(table.dtype),
        table,
        routed.rows,
        routed.route,
        True,
        False,
    )
    if routed.helped is not None:
        back = torch.where(routed.helped[..., None], back, 0)
    return back.to(x.dtype).view(x.shape)


def _fake_residual(
    x: torch.Tensor, y: torch.Tensor, ticket: torch.Tensor | None, number: int
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(y), torch.empty(1, dtype=torch.int64, device="cpu")


_follow = define("follow_", "(Tensor(a!) y, Tensor x, Tensor? ticket, int layer) -> ()", _run_follow, lambda *_: None)
_residual = define(
    "residual", "(Tensor x, Tensor y, Tensor? ticket, int layer) -> (Tensor, Tensor)", _run_residual, _fake_residual
)
_backward = define(
    "residual_backward",
    "(Tensor grad, Tensor x, Tensor kept, int layer) -> Tensor",
    _run_backward,
    lambda grad, x, *_: torch.empty_like(x),
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    ctx.save_for_backward(inputs[0], output[1])
    ctx.number = inputs[3]
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, grad: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, None, None, None]:
    x, kept = ctx.saved_tensors
    return (_backward(grad, x, kept, ctx.number) if ctx.needs_input_grad[0] else None), None, None, None


torch.library.register_autograd("memoir_fast::residual", _differentiate, setup_context=_save, lib=_library)
