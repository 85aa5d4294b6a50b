"""Throughput of `mask_match`: one query and many, over one thousand to one million stored masks."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import peers
import torch
from cases import Absent, Case, Peer, Prepared, Settings, Wrong, most_rows, require_equal, rotated, some_rows
from shapes import LLAMA, SMOLLM, Layer, count_of, masks, thresholds_of

from memoir_fast import ops
from memoir_fast.reference import mask_match as reference

_ROWS_AT_ONCE = 512  # with the reference's temporaries in the cache
_MOST_PUBLISHED = 64  # queries on the CPU
_MOST_COMPILED, _MOST_EAGER = 10_000, 100_000  # pairs of masks; the time per pair does not change further on


def in_blocks(query: torch.Tensor, store: torch.Tensor, count: torch.Tensor, min_overlap: torch.Tensor) -> tuple:
    """The reference a block of stored rows at a time, since its temporaries are several times as large as they."""
    edit, best = torch.full_like(query[:, 0], -1), torch.zeros_like(query[:, 0])
    for first in range(0, int(count), _ROWS_AT_ONCE):
        part = store[first : min(first + _ROWS_AT_ONCE, int(count))]
        rows, least = count_of(len(part), str(query.device)), min_overlap[first : first + len(part)]
        row, overlap = reference.mask_match(query, part, rows, least)
        # An equal one further on is a higher row, and a match is better than any overlap without one.
        better = ((row >= 0) > (edit >= 0)) | ((row >= 0) == (edit >= 0)) & (overlap > best)
        edit = torch.where(better & (row >= 0), row + first, edit)
        best = torch.where(better, overlap, best)
    return edit, best


def make(layer: Layer, queries: int, stored: int, settings: Settings) -> Prepared:
    """Random masks; each even query is a stored mask with an eighth of its bits gone, each odd one matches nothing."""
    device = settings.device
    store, count = masks(stored, layer, device), count_of(stored, device)
    least = thresholds_of(stored, layer.min_overlap, device)

    def draw() -> tuple:
        query = masks(queries, layer, device)
        chosen = torch.randint(stored, (queries,), device=device)
        lost = masks(queries, layer, device) & masks(queries, layer, device)  # 1/16 of all bits
        query[::2] = (store[chosen] & ~lost)[::2]
        return query, rotated(store), count, least

    def check(inputs: tuple, result: Any) -> None:
        query, *others = inputs
        rows = some_rows(queries, most_rows(device), device)
        edit, overlap = in_blocks(query[rows], *others)
        require_equal(result[1][rows], overlap, "mask_match, overlap")
        require_equal(result[0][rows], edit, "mask_match, edit")
        if result[0].shape != (queries,) or not bool((edit[rows % 2 == 0] >= 0).all()):
            raise Wrong("the queries made from stored masks match none: the case tests nothing")

    return Prepared(
        run=ops.mask_match,
        draw=draw,
        check=check,
        bytes=4 * layer.words * (stored + queries) + 8 * queries,
        ceiling="read",
        peers=_peers(store, queries, settings) if settings.peers else {},
    )


def _peers(store: torch.Tensor, queries: int, settings: Settings) -> dict[str, Peer | Absent]:
    bank = peers.bool_bank(store)
    on_cpu, few = settings.device == "cpu", queries * len(store) <= _MOST_EAGER
    slow = Absent("seconds per call at this size")
    found: dict[str, Peer | Absent] = {
        "torch eager, published": slow if on_cpu and queries > _MOST_PUBLISHED else peers.match_published(bank),
        "torch popcount": Peer(peers.match_torch) if few else slow,
        "numpy": (Peer(peers.match_numpy) if few else slow) if on_cpu else Absent("runs on the CPU"),
        "FAISS IndexBinaryFlat": peers.faiss_flat(store, torch.get_num_threads()) if on_cpu else peers.faiss_gpu(store),
    }
    if queries == 1:
        found["plain sum of the store"] = Peer(peers.store_sum, same=False)
    if queries * len(store) <= _MOST_COMPILED:
        found["torch.compile"] = peers.compiled(peers.popcount_match, settings)
    if not on_cpu:
        found["matrix product, float16 masks"] = peers.match_half(bank, torch.float16)
    return found


def cases(settings: Settings) -> Iterator[Case]:
    """Sizes in order of growth."""
    wanted = [(LLAMA, 1, stored) for stored in (1_000, 7_000, 100_000, 1_000_000)]
    wanted += [(LLAMA, 16, 7_000), (LLAMA, 16, 100_000), (LLAMA, 2048, 7_000), (SMOLLM, 1, 7_000)]
    for layer, queries, stored in [(SMOLLM, 1, 1_000)] if settings.quick else wanted:
        name = f"{queries} quer{'ies' if queries > 1 else 'y'}, N={stored:,}, D={layer.width}"
        size = 4 * layer.words * stored
        yield Case(
            "mask_match",
            name,
            layer.sizes | {"B": queries, "N": stored},
            partial(make, layer, queries, stored),
            needs_bytes=3 * size + (1 << 30),  # the store, FAISS's copy, temporaries
        )
