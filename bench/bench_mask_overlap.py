"""Throughput of `mask_overlap`: how many bits every query shares with every stored mask."""

from collections.abc import Iterator
from functools import partial

import peers
import torch
from cases import Absent, Case, Peer, Prepared, Settings, require_equal, rotated
from shapes import LLAMA, SMOLLM, Layer, masks

from memoir_fast import ops
from memoir_fast.reference import mask_overlap as reference


def make(layer: Layer, queries: int, stored: int, settings: Settings) -> Prepared:
    """Random masks."""
    store = masks(stored, layer, settings.device)
    bank = peers.bool_bank(store)

    def draw() -> tuple:
        return masks(queries, layer, settings.device), rotated(store)

    def check(inputs: tuple, result: torch.Tensor) -> None:
        require_equal(result, reference.mask_overlap(*inputs), "mask_overlap")

    slow, few = Absent("seconds per call at this size"), settings.device == "cuda" or queries == 1
    return Prepared(
        run=ops.mask_overlap,
        draw=draw,
        check=check,
        bytes=4 * layer.words * (stored + queries) + 4 * queries * stored,
        ceiling="read",
        peers={
            "torch eager, published": peers.overlap_published(bank) if few else slow,
            "torch popcount": Peer(peers.overlap_torch) if few else slow,
            "numpy": Peer(peers.overlap_numpy) if settings.device == "cpu" else Absent("runs on the CPU"),
        },
    )


def cases(settings: Settings) -> Iterator[Case]:
    """One query and a batch."""
    wanted = [(LLAMA, 1, 7_000), (LLAMA, 16, 7_000), (SMOLLM, 1, 7_000)]
    if settings.device == "cuda":
        wanted += [(LLAMA, 2048, 7_000), (LLAMA, 1, 100_000)]
    for layer, queries, stored in [(SMOLLM, 1, 1_000)] if settings.quick else wanted:
        name = f"{queries} quer{'ies' if queries > 1 else 'y'}, N={stored:,}, D={layer.width}"
        yield Case(
            "mask_overlap",
            name,
            layer.sizes | {"B": queries, "N": stored},
            partial(make, layer, queries, stored),
        )
