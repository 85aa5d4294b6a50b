"""Throughput of `masked_linear`: the residual memory's product over the matched edit's columns."""

from collections.abc import Iterator
from functools import partial

import peers
import torch
from cases import Absent, Case, Peer, Prepared, Settings, Wrong, most_rows, require_close, rotated, some_rows
from shapes import LLAMA, SMOLLM, Layer, columns, dtype_name

from memoir_fast import ops


def make(layer: Layer, batch: int, tokens: int, dtype: torch.dtype, settings: Settings) -> Prepared:
    """`batch` sequences of one route. The dense peers read a weight in the layout of nn.Linear."""
    device = settings.device
    memory = torch.randn((layer.width, layer.outputs), device=device).to(dtype)
    weight, route = memory.T.contiguous(), torch.zeros(batch, dtype=torch.int32, device=device)

    def draw() -> tuple:
        x = torch.randn((batch, tokens, layer.width), device=device).to(dtype)
        return x, rotated(memory), columns(1, layer, device), route

    def check(inputs: tuple, result: torch.Tensor) -> None:
        x, memory, owned, _ = inputs
        active, seen = owned[0].long(), some_rows(tokens, most_rows(device), device)
        if result.shape != (batch, tokens, layer.outputs):
            raise Wrong(f"masked_linear: the shape is {list(result.shape)}")
        require_close(result[:, seen], x[:, seen][..., active].double() @ memory[active].double(), "masked_linear")

    slab, rows = layer.k * layer.outputs, batch * tokens
    return Prepared(
        run=ops.masked_linear,
        draw=draw,
        check=check,
        bytes=dtype.itemsize * (slab + rows * (layer.k + layer.outputs)) + 4 * layer.k,
        operations=2 * rows * slab,
        ceiling="read",
        dtype=dtype,
        peers={
            "dense product": peers.dense(weight),
            "torch eager, published": peers.dense_masked(weight, layer.width),
            "gather and product": Peer(peers.gather_matmul),
            "torch.compile": peers.compiled(peers.gather_matmul, settings)
            if dtype == torch.bfloat16 and tokens < 1024
            else Absent("compiled for bfloat16 and fewer than 1,024 tokens only"),
        },
    )


def cases(settings: Settings) -> Iterator[Case]:
    """Decoding, a batch, and prefill."""
    wanted = [(LLAMA, 1, 1, dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)]
    wanted += [(LLAMA, 4, 1, torch.bfloat16), (LLAMA, 1, 64, torch.bfloat16), (SMOLLM, 1, 1, torch.float32)]
    wanted += [(LLAMA, 1, 2048, torch.bfloat16)]
    wanted += [(LLAMA, 1, 64, torch.float32)] if settings.device == "cpu" else []
    for layer, batch, tokens, dtype in [(SMOLLM, 1, 1, torch.float32)] if settings.quick else wanted:
        name = f"{batch} x {tokens} token{'s' * (tokens > 1)}, D={layer.width}, {dtype_name(dtype)}"
        numbers = layer.sizes | {"B": batch, "S": tokens, "dtype": dtype_name(dtype)}
        yield Case("masked_linear", name, numbers, partial(make, layer, batch, tokens, dtype))
