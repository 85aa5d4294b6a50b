"""The calls that the kernels are compiled, counted and predicted for: every op at the sizes of known models."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from memoir_fast.kernels import (
    mask_columns,
    mask_match,
    mask_overlap,
    masked_linear,
    memory_update,
    prompt_feature,
    tophash,
)
from shapes import LAYERS as LAYERS
from shapes import Layer as Layer

TOKENS_OF_PROMPT, TOKENS_OF_PREFILL, TOKENS_OF_CHUNK, TOKENS_OF_EDIT, EDITS = 512, 2048, 64, 220, 7000


@dataclass(frozen=True)
class Call:
    """One call of an op: what to run on meta tensors, the bytes it cannot avoid, and its multiply-add operations."""

    name: str
    run: Callable[[], object]
    floor_bytes: int
    operations: int = 0


def _meta(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def calls(layer: Layer, dtype: torch.dtype = torch.bfloat16) -> list[Call]:
    """Every op at a layer's sizes. Floors count each input that is needed once and each output once."""
    width, outputs, k = layer.width, layer.outputs, layer.k
    words, size, slab = layer.words, dtype.itemsize, layer.k * layer.outputs
    permutation, columns, memory = _meta(width), _meta(EDITS, k), _meta(width, outputs, dtype=dtype)
    store, query, count = _meta(EDITS, words), _meta(1, words), _meta()

    def feature() -> Call:
        x, marked = _meta(1, TOKENS_OF_PROMPT, width, dtype=dtype), _meta(1, TOKENS_OF_PROMPT, dtype=torch.bool)
        mu = _meta(width, dtype=torch.float32)
        moved = TOKENS_OF_PROMPT * width * size + 8 * width
        return Call("prompt_feature", lambda: prompt_feature.prompt_feature(x, marked, mu), moved)

    def select(rows: int) -> Call:
        row = _meta(rows, width, dtype=torch.float32)
        moved = rows * 4 * (width + words + k) + 4 * width
        return Call(f"tophash, {rows} rows", lambda: tophash.tophash(row, k, permutation), moved)

    def product(name: str, batch: int, tokens: int) -> Call:
        x, base = _meta(batch, tokens, width, dtype=dtype), _meta(batch, tokens, outputs, dtype=dtype)
        route = _meta(batch)
        moved = size * (slab + batch * tokens * (k + 2 * outputs)) + 4 * k
        return Call(
            name,
            lambda: masked_linear.masked_linear_add_(base, x, memory, columns, route),
            moved,
            2 * batch * tokens * slab,
        )

    def gradient() -> Call:
        x, grad = _meta(1, TOKENS_OF_EDIT, width, dtype=dtype), _meta(1, TOKENS_OF_EDIT, outputs, dtype=dtype)
        moved = size * (slab + TOKENS_OF_EDIT * (2 * width + outputs) + width * outputs) + 8 * width * outputs
        return Call(
            "masked_linear_backward",
            lambda: masked_linear.masked_linear_backward(grad, x, memory, columns, _meta(1), True, True),
            moved,
            4 * TOKENS_OF_EDIT * slab,
        )

    def update() -> Call:
        a, c = _meta(TOKENS_OF_EDIT, k, dtype=dtype), _meta(TOKENS_OF_EDIT, outputs, dtype=dtype)
        moved = size * (2 * slab + TOKENS_OF_EDIT * (k + outputs))
        return Call(
            "memory_update",
            lambda: memory_update.memory_update(memory, _meta(k), a, c),
            moved,
            2 * TOKENS_OF_EDIT * slab,
        )

    scanned = 4 * words * EDITS
    return [
        feature(),
        select(1),
        select(8192),
        Call("mask_columns", lambda: mask_columns.mask_columns(query, k), 4 * (words + k)),
        Call("mask_match, 7,000 edits", lambda: mask_match.mask_match(query, store, count, _meta(EDITS)), scanned),
        Call("mask_overlap, 7,000 edits", lambda: mask_overlap.mask_overlap(query, store), scanned + 4 * EDITS),
        product("masked_linear, 1 token", 1, 1),
        product("masked_linear, 4 sequences of one route", 4, 1),
        product(f"masked_linear, {TOKENS_OF_CHUNK} tokens", 1, TOKENS_OF_CHUNK),
        product(f"masked_linear, {TOKENS_OF_PREFILL} tokens", 1, TOKENS_OF_PREFILL),
        gradient(),
        update(),
    ]
