"""`memory_update`, which writes a learned edit to its rows of the residual memory."""

from collections.abc import Iterator
from functools import partial

import torch
from benchmark import Benchmark, Call, Roofline
from cases import Case, Peer, Prepared, Settings, require_close
from shapes import LLAMA, SMOLLM, TOKENS_OF_EDIT, Layer, columns, dtype_name, meta

from memoir_fast import ops

SOURCES = ("kernels/*memory_update*.py", "memoir_fast/reference/memory_update.py")


def indexed(memory: torch.Tensor, columns: torch.Tensor, a: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """memory[columns] += a^T c by fancy indexing."""
    memory[columns.long()] += a.T @ c
    return memory


def index_add(memory: torch.Tensor, columns: torch.Tensor, a: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """As `indexed`, by index_add_."""
    return memory.index_add_(0, columns.long(), a.T @ c)


def published(memory: torch.Tensor, columns: torch.Tensor, a: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """The published way: a gradient of the memory's full size, zero outside of the columns, is added."""
    gradient = torch.zeros_like(memory)
    gradient[columns.long()] = a.T @ c
    return memory.add_(gradient)


def make(layer: Layer, tokens: int, dtype: torch.dtype, settings: Settings) -> Prepared:
    """An edit with `tokens` tokens. The memory grows by every call that is timed; that changes no cost."""
    device = settings.device
    memory = torch.zeros((layer.width, layer.outputs), device=device, dtype=dtype)

    def draw() -> tuple:
        a = torch.randn((tokens, layer.k), device=device).to(dtype)
        c = torch.randn((tokens, layer.outputs), device=device).to(dtype) * 1e-3
        return memory, columns(1, layer, device)[0], a, c

    def check(inputs: tuple, result: torch.Tensor) -> None:
        memory, owned, a, c = inputs
        expected = torch.zeros(memory.shape, dtype=torch.float64, device=device)
        expected[owned.long()] = a.double().T @ c.double()
        got = result.clone()
        memory.zero_()  # for the next contender's check
        require_close(got, expected, "memory_update")

    slab = layer.k * layer.outputs
    return Prepared(
        run=ops.memory_update,
        draw=draw,
        check=check,
        bytes=dtype.itemsize * (2 * slab + tokens * (layer.k + layer.outputs)),
        operations=2 * tokens * slab,
        dtype=dtype,
        peers={
            "torch, indexed": Peer(indexed),
            "torch, index_add_": Peer(index_add),
            "torch eager, published": Peer(published),
        },
    )


def cases(settings: Settings) -> Iterator[Case]:
    """An edit of about 20 tokens with ten prefixes, and one in the plain prompt."""
    wanted = [(LLAMA, 20, torch.float32), (SMOLLM, 220, torch.float32)]
    wanted += [(LLAMA, 220, torch.bfloat16)] if settings.device == "cuda" else []
    for layer, tokens, dtype in [(SMOLLM, 20, torch.float32)] if settings.quick else wanted:
        name = f"{tokens} tokens, D={layer.width}, {dtype_name(dtype)}"
        numbers = layer.sizes | {"n": tokens, "dtype": dtype_name(dtype)}
        yield Case("memory_update", name, numbers, partial(make, layer, tokens, dtype))


def calls(layer: Layer, dtype: torch.dtype) -> list[Call]:
    """An edit with its prefixes."""
    from memoir_fast.kernels import memory_update  # needs triton, which is not everywhere

    tokens, slab = TOKENS_OF_EDIT, layer.k * layer.outputs
    memory, own = meta(layer.width, layer.outputs, dtype=dtype), meta(layer.k)
    a, c = meta(tokens, layer.k, dtype=dtype), meta(tokens, layer.outputs, dtype=dtype)
    moved = dtype.itemsize * (2 * slab + tokens * (layer.k + layer.outputs))
    return [Call("memory_update", lambda: memory_update.memory_update(memory, own, a, c), moved, 2 * tokens * slab)]


BENCHMARK = Benchmark("memory_update", SOURCES, cases, calls=calls, roofline=Roofline("C5"))
