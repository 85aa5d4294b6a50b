"""`mask_overlap`: how many bits every query shares with every stored mask."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from benchmark import Benchmark, Call, Roofline
from cases import ON_CPU_ONLY, SLOW, Absent, Case, Peer, Prepared, Settings, require_equal, rotated
from shapes import EDITS, LLAMA, SMOLLM, Layer, masks, meta, queries_name

from memoir_fast import ops
from memoir_fast.reference import mask_overlap as reference

SOURCES = ("kernels/*mask_overlap*.py", "csrc/overlap*", "csrc/scan*")
_NUMPY_ROWS = 512  # per block: the temporaries stay in the cache
_BOOL_BYTES = 2 << 30  # no bool bank above this as float32: the published way takes 32 times the masks' bytes


def by_numpy(query: torch.Tensor, store: torch.Tensor) -> torch.Tensor:
    """numpy's popcount, in blocks."""
    words, queries = store.numpy().view(np.uint64), query.numpy().view(np.uint64)
    found = np.empty((len(queries), len(words)), dtype=np.int32)
    for row, mask in enumerate(queries):
        for first in range(0, len(words), _NUMPY_ROWS):
            block = words[first : first + _NUMPY_ROWS]
            found[row, first : first + _NUMPY_ROWS] = np.bitwise_count(block & mask).sum(axis=1, dtype=np.int32)
    return torch.from_numpy(found)


def bool_bank(store: torch.Tensor) -> torch.Tensor | Absent:
    """The masks as the published code keeps them, bool [N, bits], or why not."""
    if store.numel() * 32 * 4 > _BOOL_BYTES:
        return Absent(f"bool masks cast to float32 would take {store.numel() * 128 / 1e9:.1f} GB")
    shift = torch.arange(32, dtype=torch.int32, device=store.device)
    return (store[..., None] >> shift & 1).flatten(-2).bool()


def as_floats(query: torch.Tensor) -> torch.Tensor:
    """Packed masks as ones and zeros in float32, [B, bits]."""
    bits = query[..., None] >> torch.arange(32, dtype=torch.int32, device=query.device) & 1
    return bits.flatten(-2).float()


def published(bank: torch.Tensor | Absent) -> Peer | Absent:
    """The product of the published retrieval, which casts the bool bank to float32 at every call; all overlaps kept."""
    if isinstance(bank, Absent):
        return bank
    return Peer(lambda query, store: (as_floats(query) @ bank.float().T).int())


def bit_pairs(numbers: dict[str, Any]) -> float:
    """Operations of a row: a pair of bits counts as two."""
    return 2 * numbers["B"] * numbers["N"] * numbers["D"]


def make(layer: Layer, queries: int, stored: int, settings: Settings) -> Prepared:
    """Random masks."""
    store = masks(stored, layer, settings.device)
    bank = bool_bank(store)

    def draw() -> tuple:
        return masks(queries, layer, settings.device), rotated(store)

    def check(inputs: tuple, result: torch.Tensor) -> None:
        require_equal(result, reference.mask_overlap(*inputs), "mask_overlap")

    few = settings.device == "cuda" or queries == 1
    return Prepared(
        run=ops.mask_overlap,
        draw=draw,
        check=check,
        bytes=4 * layer.words * (stored + queries) + 4 * queries * stored,
        ceiling="read",
        peers={
            "torch eager, published": published(bank) if few else SLOW,
            "torch popcount": Peer(reference.mask_overlap) if few else SLOW,
            "numpy": Peer(by_numpy) if settings.device == "cpu" else ON_CPU_ONLY,
        },
    )


def cases(settings: Settings) -> Iterator[Case]:
    """One query and a batch."""
    wanted = [(LLAMA, 1, 7_000), (LLAMA, 16, 7_000), (SMOLLM, 1, 7_000)]
    if settings.device == "cuda":
        wanted += [(LLAMA, 2048, 7_000), (LLAMA, 1, 100_000)]
    for layer, queries, stored in [(SMOLLM, 1, 1_000)] if settings.quick else wanted:
        yield Case(
            "mask_overlap",
            queries_name(queries, stored, layer),
            layer.sizes | {"B": queries, "N": stored},
            partial(make, layer, queries, stored),
        )


def calls(layer: Layer, dtype: torch.dtype) -> list[Call]:
    """One query."""
    from memoir_fast.kernels import mask_overlap  # needs triton, which is not everywhere

    query, store = meta(1, layer.words), meta(EDITS, layer.words)
    moved = 4 * layer.words * EDITS + 4 * EDITS
    return [Call("mask_overlap, 7,000 edits", lambda: mask_overlap.mask_overlap(query, store), moved)]


BENCHMARK = Benchmark(
    "mask_overlap",
    SOURCES,
    cases,
    calls=calls,
    roofline=Roofline("C2", bit_pairs, "bits: no product bounds it"),
)
