"""Throughput of `prompt_feature`: the centred mean of a prompt's activations."""

from collections.abc import Iterator
from functools import partial

import peers
import torch
from cases import Absent, Case, Peer, Prepared, Settings, require_close
from shapes import LLAMA, SMOLLM, Layer, dtype_name

from memoir_fast import ops


def make(layer: Layer, batch: int, tokens: int, dtype: torch.dtype, settings: Settings) -> Prepared:
    """x is normal around 0.3; every token is the prompt's."""
    device, mu = settings.device, torch.randn(layer.width, device=settings.device)
    marked = torch.ones((batch, tokens), dtype=torch.bool, device=device)

    def draw() -> tuple:
        return (torch.randn((batch, tokens, layer.width), device=device) + 0.3).to(dtype), marked, mu

    def check(inputs: tuple, result: torch.Tensor) -> None:
        x, _, _ = inputs
        require_close(result, x.double().mean(dim=1) - mu, "prompt_feature")

    return Prepared(
        run=partial(ops.prompt_feature, check=False),
        draw=draw,
        check=check,
        bytes=batch * tokens * layer.width * dtype.itemsize + 4 * batch * layer.width,
        ceiling="read",
        peers={
            "torch eager": Peer(peers.feature_eager),
            "torch, one product": Peer(peers.feature_matmul, same=dtype == torch.float32),
            "torch.compile": peers.compiled(peers.feature_eager, settings)
            if (batch, tokens) == (1, 512)
            else Absent("compiled for one prompt of 512 tokens only"),
        },
    )


def cases(settings: Settings) -> Iterator[Case]:
    """A whole prompt at once."""
    wanted = [(LLAMA, 1, 512, torch.bfloat16), (LLAMA, 1, 2048, torch.bfloat16), (LLAMA, 1, 512, torch.float32)]
    wanted += [(SMOLLM, 1, 64, torch.float32), (LLAMA, 8, 64, torch.bfloat16)]
    for layer, batch, tokens, dtype in [(SMOLLM, 1, 64, torch.float32)] if settings.quick else wanted:
        name = f"{batch} x {tokens} tokens, D={layer.width}, {dtype_name(dtype)}"
        numbers = layer.sizes | {"B": batch, "S": tokens, "dtype": dtype_name(dtype)}
        yield Case("prompt_feature", name, numbers, partial(make, layer, batch, tokens, dtype))
