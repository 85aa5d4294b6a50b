"""The sketch's scan beside the exact one: how much of a search's time it saves, and how likely it misses."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import bench_mask_match
import torch
from bench_mask_match import in_blocks
from benchmark import Benchmark
from cases import Case, Peer, Prepared, Settings, Wrong, require_equal, rotated
from shapes import LLAMA, Layer, count_of, masks, thresholds_of

from memoir_fast import ops
from memoir_fast.ops.mask_match import TILE_BITS, mask_match_sketch, miss_probability

CANDIDATES = 1024
PARAPHRASE, OTHERS = 0.465, 0.30
"""Overlap ratios that a miss is told for: the least of a paraphrase, the usual one of other edits."""


def make(layer: Layer, stored: int, tiles: int, settings: Settings) -> Prepared:
    """One query, a stored mask with an eighth of its bits gone. The exact search is the peer."""
    device = settings.device
    store, count = masks(stored, layer, device), count_of(stored, device)
    least = thresholds_of(stored, layer.min_overlap, device)

    def draw() -> tuple:
        lost = masks(1, layer, device) & masks(1, layer, device)
        return store[torch.randint(stored, (1,), device=device)] & ~lost, rotated(store), count, least

    def check(inputs: tuple, result: Any) -> None:
        edit, overlap = in_blocks(*inputs)
        require_equal(result[1], overlap, "mask_match_sketch, overlap")
        require_equal(result[0], edit, "mask_match_sketch, edit")
        if int(edit) < 0:
            raise Wrong("the query made from a stored mask matches none: the case tests nothing")

    return Prepared(
        run=partial(mask_match_sketch, tiles=tiles, candidates=CANDIDATES),
        draw=draw,
        check=check,
        bytes=stored * (tiles * TILE_BITS // 8 + 4) + CANDIDATES * 4 * layer.words,
        ceiling="read",
        op="mask_match",
        peers={"mask_match, exact": Peer(ops.mask_match)},
    )


def cases(settings: Settings) -> Iterator[Case]:
    """Two sizes of sample; the probability that the best row is passed over is part of the name."""
    layer = LLAMA
    wanted = [(100_000, 4), (100_000, 2)] + ([(1_000_000, 4)] if settings.device == "cuda" else [])
    for stored, tiles in [(10_000, 4)] if settings.quick else wanted:
        sizes = {"tiles": tiles, "candidates": CANDIDATES}
        missed = miss_probability(layer.width, layer.k, round(PARAPHRASE * layer.k), stored, base=OTHERS, **sizes)
        numbers = layer.sizes | {"N": stored, "B": 1} | sizes | {"miss_probability": missed}
        name = f"{tiles} of {layer.width // TILE_BITS} tiles, N={stored:,}, misses with probability {missed:.0e}"
        yield Case("sketch", name, numbers, partial(make, layer, stored, tiles))


BENCHMARK = Benchmark("sketch", (*bench_mask_match.SOURCES, "memoir_fast/ops/mask_match.py"), cases)
