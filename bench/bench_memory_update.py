"""Throughput of `memory_update`: writing a learned edit to its rows of the residual memory."""

from collections.abc import Iterator
from functools import partial

import peers
import torch
from cases import Case, Peer, Prepared, Settings, require_close
from shapes import LLAMA, SMOLLM, Layer, columns, dtype_name

from memoir_fast import ops


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
            "torch, indexed": Peer(peers.update_indexed),
            "torch, index_add_": Peer(peers.update_index_add),
            "torch eager, published": Peer(peers.update_dense),
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
