"""`mask_match`: one query and many, over one thousand to one million stored masks."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from bench_mask_overlap import as_floats, bit_pairs, bool_bank, by_numpy
from benchmark import Benchmark, Call, Predicted, Roofline, Target
from cases import (
    ON_CPU_ONLY,
    SLOW,
    Absent,
    Case,
    Peer,
    Prepared,
    Settings,
    Wrong,
    compiled,
    most_rows,
    require_equal,
    rotated,
    some_rows,
)
from figure import floors, microseconds, own_seconds, plain, share, timed, times
from predict import CLEAR, SMS, Row, Seen, Work
from shapes import EDITS, LLAMA, SMOLLM, Layer, Token, count_of, masks, meta, queries_name, thresholds_of

from memoir_fast import ops
from memoir_fast.reference import mask_match as reference
from memoir_fast.reference.popcount import popcount

SOURCES = ("kernels/*mask_match*.py", "csrc/overlap*", "csrc/scan*", "csrc/clear_scratch*")
_ROWS_AT_ONCE = 512  # with the reference's temporaries in the cache
_MOST_PUBLISHED = 64  # queries on the CPU
_MOST_COMPILED, _MOST_EAGER = 10_000, 100_000  # pairs of masks; the time per pair does not change further on


def most_overlap(query: torch.Tensor, store: torch.Tensor) -> torch.Tensor:
    """The most bits that each query shares with any stored mask, int32 [B]."""
    return ops.mask_match(query, store, count_of(len(store), "cpu"), 1)[1]


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


def match_by_numpy(query: torch.Tensor, store: torch.Tensor, count: torch.Tensor, min_overlap: torch.Tensor) -> Any:
    """`by_numpy` and an arg-max, which takes the lowest row of a tie."""
    overlap = by_numpy(query, store[: int(count)])
    best = overlap.numpy().argmax(axis=1)
    found = torch.from_numpy(overlap.numpy()[np.arange(len(query)), best])
    least = min_overlap[torch.from_numpy(best)]
    return torch.where(found >= least, torch.from_numpy(best).int(), -1), found


def published(bank: torch.Tensor | Absent) -> Peer | Absent:
    """The published retrieval: the bool bank cast to float32 at every call, a product, an arg-max."""
    if isinstance(bank, Absent):
        return bank

    def run(query: torch.Tensor, store: torch.Tensor, count: torch.Tensor, min_overlap: torch.Tensor) -> Any:
        overlap = as_floats(query) @ bank.float().T
        best = overlap.max(dim=1)
        return torch.where(best.values >= min_overlap[best.indices], best.indices, -1).int(), best.values.int()

    return Peer(run)


def two_byte_product(bank: torch.Tensor | Absent, dtype: torch.dtype) -> Peer | Absent:
    """A well-written dense way: the bank kept in a two-byte float, one matrix product. Exact while k < 2^24."""
    if isinstance(bank, Absent):
        return bank
    kept = bank.to(dtype)

    def run(query: torch.Tensor, store: torch.Tensor, count: torch.Tensor, min_overlap: torch.Tensor) -> Any:
        return (as_floats(query).to(dtype) @ kept.T).max(dim=1)

    return Peer(run, same=False)  # sums are rounded to the two-byte float


def store_sum(query: torch.Tensor, store: torch.Tensor, count: torch.Tensor, min_overlap: torch.Tensor) -> torch.Tensor:
    """Reads every mask and does next to nothing: how quickly this store can be read."""
    return store.view(torch.int64).sum()


def fusible(query: torch.Tensor, store: torch.Tensor, count: torch.Tensor, min_overlap: torch.Tensor) -> Any:
    """What torch.compile fuses into one pass: popcount, row sums, maximum."""
    overlap = popcount(store[None] & query[:, None]).sum(-1, dtype=torch.int32)
    best = overlap.max(dim=1)
    return torch.where(best.values >= min_overlap[best.indices], best.indices, -1).int(), best.values


def faiss_flat(store: torch.Tensor, threads: int) -> Peer | Absent:
    """FAISS's exhaustive binary index on the CPU. It ranks by Hamming distance, not by overlap: another function."""
    try:
        import faiss
    except ImportError:
        return Absent("faiss is not installed (pip install --no-deps faiss-cpu)")
    faiss.omp_set_num_threads(threads)
    index = faiss.IndexBinaryFlat(store.shape[1] * 32)
    index.add(store.numpy().view(np.uint8))
    return Peer(lambda query, *_: index.search(query.numpy().view(np.uint8), 1), same=False)


def faiss_gpu(store: torch.Tensor) -> Peer | Absent:
    """FAISS's exhaustive binary index on a GPU, where the installed package has one."""
    try:
        import faiss
    except ImportError:
        return Absent("faiss is not installed")
    if not hasattr(faiss, "GpuIndexBinaryFlat"):
        return Absent("the installed faiss has no GPU part")
    index = faiss.GpuIndexBinaryFlat(faiss.StandardGpuResources(), store.shape[1] * 32)
    index.add(store.cpu().numpy().view(np.uint8))

    def run(query: torch.Tensor, *_: Any) -> Any:
        return index.search(query.cpu().numpy().view(np.uint8), 1)

    return Peer(run, same=False)


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
    bank = bool_bank(store)
    on_cpu, few = settings.device == "cpu", queries * len(store) <= _MOST_EAGER
    found: dict[str, Peer | Absent] = {
        "torch eager, published": SLOW if on_cpu and queries > _MOST_PUBLISHED else published(bank),
        "torch popcount": Peer(reference.mask_match) if few else SLOW,
        "numpy": (Peer(match_by_numpy) if few else SLOW) if on_cpu else ON_CPU_ONLY,
        "FAISS IndexBinaryFlat": faiss_flat(store, torch.get_num_threads()) if on_cpu else faiss_gpu(store),
    }
    if queries == 1:
        found["plain sum of the store"] = Peer(store_sum, same=False)
    if queries * len(store) <= _MOST_COMPILED:
        found["torch.compile"] = compiled(fusible, settings)
    if not on_cpu:
        found["matrix product, float16 masks"] = two_byte_product(bank, torch.float16)
    return found


def cases(settings: Settings) -> Iterator[Case]:
    """Sizes in order of growth."""
    wanted = [(LLAMA, 1, stored) for stored in (1_000, 7_000, 100_000, 1_000_000)]
    wanted += [(LLAMA, 16, 7_000), (LLAMA, 16, 100_000), (LLAMA, 2048, 7_000), (SMOLLM, 1, 7_000)]
    for layer, queries, stored in [(SMOLLM, 1, 1_000)] if settings.quick else wanted:
        size = 4 * layer.words * stored
        yield Case(
            "mask_match",
            queries_name(queries, stored, layer),
            layer.sizes | {"B": queries, "N": stored},
            partial(make, layer, queries, stored),
            needs_bytes=3 * size + (1 << 30),  # the store, FAISS's copy, temporaries
        )


def growing() -> Iterator[Case]:
    """Numbers of stored masks, and of queries, that `cases` has not."""
    for stored in (3_000, 10_000, 30_000, 300_000):
        numbers, need = LLAMA.sizes | {"N": stored, "B": 1}, 2 * 4 * LLAMA.words * stored + (1 << 30)
        yield Case("mask_match", f"N={stored:,}", numbers, partial(make, LLAMA, 1, stored), need)
    for queries in (2, 4, 8, 32):
        numbers = LLAMA.sizes | {"N": 7_000, "B": queries}
        yield Case("mask_match", f"B={queries}", numbers, partial(make, LLAMA, queries, 7_000))


def growth_step(numbers: dict[str, Any]) -> str | None:
    """Numbers of stored masks for one query, and of queries among 7,000, at the large layer."""
    if numbers.get("D") != LLAMA.width or (numbers["B"] != 1 and numbers["N"] != 7_000):
        return None
    return f"N={numbers['N']:,}" if numbers["B"] == 1 else f"B={numbers['B']}"


def issue(token: Token) -> dict[str, Callable[[], object]]:
    """Its call for one token."""
    return {"mask_match": lambda: ops.mask_match(token.query, token.store, token.count, token.min_overlap)}


def calls(layer: Layer, dtype: torch.dtype) -> list[Call]:
    """One query."""
    from memoir_fast.kernels import mask_match  # needs triton, which is not everywhere

    arguments = meta(1, layer.words), meta(EDITS, layer.words), meta(), meta(EDITS)
    run, moved = partial(mask_match.mask_match, *arguments), 4 * layer.words * EDITS
    return [Call("mask_match, 7,000 edits", run, moved)]


def paper() -> list[str]:
    """What bounds the extension's kernels; see static_scan.py."""
    import static_scan  # needs triton

    title = "## mask_match of the CUDA extension: bounds on an H200"
    return [
        title,
        *static_scan.paper([(1, 7_000), (1, 100_000), (1, 1_000_000), (16, 7_000), (16, 100_000), (2048, 7_000)]),
    ]


_MASK = 1792.0  # bytes of a mask of D=14336


def counted(rows: int, mask: float = _MASK) -> tuple[Work, ...]:
    """Its kernels of one query at bf69bd7: one that clears, then the scan, which starts early.

    Trips: the count, the rows, the ticket of the last block, the blocks' results.
    """
    return CLEAR, Work(trips=4, streamed=(rows + 1) * mask, early=True)


def counted_tiles(queries: int, rows: int, tile_queries: int, tile_rows: int, busy: float) -> tuple[Work, ...]:
    """Its kernels of many queries at bf69bd7: a memset, then tiles of one-bit products."""
    blocks_of_rows, blocks_of_queries = -(-rows // tile_rows), -(-queries // tile_queries)
    moved = (blocks_of_rows * queries + blocks_of_queries * rows) * _MASK
    return CLEAR, Work(trips=4, streamed=(rows + queries) * _MASK, cached=moved, busy=busy)


def _row(queries: int, stored: int, kernels: tuple[Work, ...], layer: Layer = LLAMA, seen: Seen | None = None) -> Row:
    return Row("mask_match", queries_name(queries, stored, layer), kernels, seen=seen)


def counted_now(queries: int, rows: int, threshold: float = 4.0) -> tuple[Work, ...]:
    """Its kernels as at bf69bd7, and the bytes of a threshold for every row, asked for together with the mask."""
    if queries == 1:
        return counted(rows, _MASK + threshold)
    tile_queries = 32 if queries <= 32 else 128
    blocks = -(-rows // 128) * -(-queries // tile_queries)
    clear, scan = counted_tiles(queries, rows, tile_queries, 128, min(1.0, blocks / SMS))
    return clear, replace(scan, streamed=scan.streamed + threshold * rows)


_SIZES = [(1, 1_000), (1, 7_000), (1, 100_000), (1, 1_000_000), (16, 7_000), (16, 100_000), (2048, 7_000)]
_SINCE = "every row has a threshold of its own"
PREDICTED = Predicted(
    fitted=[
        *(_row(1, stored, counted(stored)) for stored in (1_000, 7_000, 100_000, 1_000_000)),
        _row(1, 7_000, (CLEAR, Work(trips=4, streamed=7_000 * 192.0, early=True)), SMOLLM),
        _row(16, 7_000, counted_tiles(16, 7_000, 32, 128, 55 / 132)),
        _row(2048, 7_000, counted_tiles(2048, 7_000, 128, 128, 1.0)),
    ],
    shown=[_row(16, 100_000, counted_tiles(16, 100_000, 32, 128, 1.0))],
    planned=[
        _row(*size, counted_now(*size), seen=Seen(since=_SINCE, kernels=counted_now(*size, threshold=0)))
        for size in _SIZES
    ],
)

_PEERS_COLOURS = [f"tab:{name}" for name in ("blue", "orange", "green", "purple", "brown", "pink")]  # not the op's red


def against_stored(figures: dict[str, Any], grown: Sequence[dict[str, Any]], axes: Any) -> None:
    """Its time of one query against stored masks, the floor, and the peers."""
    rows = [row for row in grown if "seconds" in row and row["parameters"]["op"] == "mask_match"]
    rows = sorted((row for row in rows if row["parameters"]["B"] == 1), key=lambda row: row["parameters"]["N"])
    if not rows:
        return
    stored = [row["parameters"]["N"] for row in rows]
    axes.set_prop_cycle(color=_PEERS_COLOURS)
    mine = [own_seconds(row) * 1e3 for row in rows]
    axes.plot(stored, mine, "o-", color="crimson", linewidth=2, zorder=5, label="mask_match")
    axes.plot(stored, floors(rows), "k--", linewidth=1, label="its bytes over the bandwidth")
    peers: dict[str, list[tuple[int, float]]] = {}
    for row in timed(figures, "mask_match"):
        numbers = row["parameters"]
        for name, seen in row["peers"].items():
            if "ratio" in seen and numbers["B"] == 1 and numbers["D"] == LLAMA.width:
                peers.setdefault(name, []).append((numbers["N"], seen["ratio"] * own_seconds(row) * 1e3))
    for name, points in peers.items():
        axes.plot(*zip(*sorted(points), strict=True), "s:", markersize=4, linewidth=1, label=name)
    axes.set(xscale="log", yscale="log", xlabel="stored edits N", ylabel="milliseconds per query")
    plain(axes, [number for number in (1_000, 10_000, 100_000, 1_000_000) if number in stored])
    axes.set_title("mask_match: one query among N edits, D = 14336")
    axes.legend(fontsize=7.5)


def _target(queries: int, stored: int, what: str, figure: Callable, bound: float, at_least: bool = True) -> Target:
    return Target(queries_name(queries, stored, LLAMA), what, figure, bound, at_least)


_FAISS, _SUM = "FAISS IndexBinaryFlat", "plain sum of the store"
BENCHMARK = Benchmark(
    "mask_match",
    SOURCES,
    cases,
    listed=(
        ("mask_match, 1 query, 7,000 edits", "1 query, N=7,000, D=14336"),
        ("mask_match, 1 query, 100,000 edits", "1 query, N=100,000, D=14336"),
        ("mask_match, 1 query, 1,000,000 edits", "1 query, N=1,000,000, D=14336"),
        ("mask_match, 2,048 queries, 7,000 edits", "2048 queries, N=7,000, D=14336"),
    ),
    headlines=(
        ("search of one prompt among 7,000 edits", "mask_match, 1 query, 7,000 edits"),
        ("search among 100,000 edits", "mask_match, 1 query, 100,000 edits"),
        ("search among 1,000,000 edits", "mask_match, 1 query, 1,000,000 edits"),
    ),
    cpu_targets=(
        _target(1, 100_000, "times the speed of a plain sum of the store", times(_SUM, "hot"), 0.9),
        _target(1, 100_000, "times FAISS's speed", times(_FAISS, "hot"), 1.2),
        _target(1, 7_000, "times FAISS's speed", times(_FAISS, "hot"), 1.1),
        _target(16, 100_000, "times FAISS's speed", times(_FAISS, "hot"), 2.0),
    ),
    gpu_targets=(
        _target(1, 7_000, "us, alone", microseconds, 7, False),
        _target(1, 7_000, "times the speed of torch.compile", times("torch.compile"), 1),
        _target(1, 100_000, "share of the copy bandwidth", share(), 0.92),
        _target(1, 1_000_000, "share of the copy bandwidth", share(), 0.95),
        _target(2048, 7_000, "us", microseconds, 70, False),
    ),
    calls=calls,
    predicted=PREDICTED,
    paper=paper,
    growth_step=growth_step,
    roofline=Roofline("C3", bit_pairs, "bits: no product bounds it"),
    plots={"search": against_stored},
)
