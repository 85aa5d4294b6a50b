"""`masked_linear_backward`: gradients to a prompt's inputs and to the active rows of the memory."""

from collections.abc import Iterator
from functools import partial

import torch
from benchmark import Benchmark, Call
from cases import Case, Peer, Prepared, Settings, require_close
from shapes import EDITS, LLAMA, SMOLLM, TOKENS_OF_EDIT, Layer, columns, dtype_name, meta

SOURCES = ("kernels/*masked_linear*.py", "memoir_fast/reference/masked_linear.py")


def gathered(
    grad: torch.Tensor,
    x: torch.Tensor,
    memory: torch.Tensor,
    columns: torch.Tensor,
    route: torch.Tensor,
    need_x: bool,
    need_memory: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both gradients of one sequence by torch's own products over gathered rows."""
    rows = columns[0].long()
    to_x, to_memory = torch.zeros_like(x), torch.zeros_like(memory)
    to_x[..., rows] = grad @ memory[rows].mT
    to_memory[rows] = x[0][:, rows].mT @ grad[0]
    return to_x, to_memory


def make(layer: Layer, tokens: int, dtype: torch.dtype, settings: Settings) -> Prepared:
    """One sequence that follows an edit; both gradients."""
    device = settings.device
    memory = torch.randn((layer.width, layer.outputs), device=device).to(dtype)
    owned, route = columns(1, layer, device), torch.zeros(1, dtype=torch.int32, device=device)
    op = torch.ops.memoir_fast.masked_linear_backward.default

    def draw() -> tuple:
        grad = torch.randn((1, tokens, layer.outputs), device=device).to(dtype)
        return grad, torch.randn((1, tokens, layer.width), device=device).to(dtype), memory, owned, route, True, True

    def check(inputs: tuple, result: tuple) -> None:
        grad, x, memory, owned, *_ = inputs
        rows = owned[0].long()
        to_x = torch.zeros(x.shape, dtype=torch.float64, device=device)
        to_x[..., rows] = grad.double() @ memory[rows].double().T
        to_memory = torch.zeros(memory.shape, dtype=torch.float64, device=device)
        to_memory[rows] = x[0][:, rows].double().T @ grad[0].double()
        require_close(result[0], to_x, "gradient to x")
        require_close(result[1], to_memory, "gradient to the memory")

    slab, whole = layer.k * layer.outputs, layer.width * layer.outputs
    return Prepared(
        run=op,
        draw=draw,
        check=check,
        bytes=dtype.itemsize * (slab + whole + tokens * (2 * layer.width + layer.outputs)),
        operations=4 * tokens * slab,
        dtype=dtype,
        op="masked_linear_backward",
        peers={"torch, gathered": Peer(gathered)},
    )


def cases(settings: Settings) -> Iterator[Case]:
    """An edit with its prefixes in one sequence."""
    wanted = [(LLAMA, 220, torch.bfloat16)] if settings.device == "cuda" else []
    wanted += [(SMOLLM, 220, torch.float32)]
    for layer, tokens, dtype in [(SMOLLM, 20, torch.float32)] if settings.quick else wanted:
        name = f"{tokens} tokens, D={layer.width}, {dtype_name(dtype)}"
        numbers = layer.sizes | {"S": tokens, "dtype": dtype_name(dtype)}
        yield Case("backward", name, numbers, partial(make, layer, tokens, dtype))


def calls(layer: Layer, dtype: torch.dtype) -> list[Call]:
    """Both gradients of an edit with its prefixes."""
    from memoir_fast.kernels import masked_linear  # needs triton, which is not everywhere

    tokens, slab, whole = TOKENS_OF_EDIT, layer.k * layer.outputs, layer.width * layer.outputs
    x, grad = meta(1, tokens, layer.width, dtype=dtype), meta(1, tokens, layer.outputs, dtype=dtype)
    memory, own = meta(layer.width, layer.outputs, dtype=dtype), meta(EDITS, layer.k)
    moved = dtype.itemsize * (slab + tokens * (2 * layer.width + layer.outputs) + whole) + 8 * whole
    run = partial(masked_linear.masked_linear_backward, grad, x, memory, own, meta(1), True, True)
    return [Call("masked_linear_backward", run, moved, 4 * tokens * slab)]


BENCHMARK = Benchmark("backward", SOURCES, cases, calls=calls)
