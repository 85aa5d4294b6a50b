"""What the kernels do, counted: those of the first run on an H100, which the model is fitted to, and those of today.

`MEASURED` counts the kernels of commit bf69bd7 and torch's own beside them. `PLANNED` counts the kernels as they are
now: what a row of it says was written down before the kernel ran. Counts are for D=14336, O=4096, k=4096.
"""

import json
from pathlib import Path

from predict import Measured, Row, Work

RUN = Path(__file__).parent / "results" / "NVIDIA-H100-80GB-HBM3-2026-11-26-bf69bd7.json"
"""The run that the costs are fitted to."""
MASK, SLAB, DENSE = 1792.0, 4096 * 4096.0, 14336 * 4096.0  # bytes of a mask; elements of the active rows, of the layer
FEW_SMS = 4  # times its share of the bandwidth that an SM can draw where others rest
CLEAR = Work(trips=1)  # a kernel or a memset of a few bytes


def scan(rows: int) -> tuple[Work, ...]:
    """mask_match of one query at bf69bd7: a kernel that clears, then the scan, which starts early.

    Trips: the count, the rows, the ticket of the last block, the blocks' results.
    """
    return CLEAR, Work(trips=4, streamed=(rows + 1) * MASK, early=True)


def tiles(queries: int, rows: int, tile_queries: int, tile_rows: int, busy: float) -> tuple[Work, ...]:
    """mask_match of many queries at bf69bd7: a memset, then tiles of one-bit products."""
    blocks_of_rows, blocks_of_queries = -(-rows // tile_rows), -(-queries // tile_queries)
    moved = (blocks_of_rows * queries + blocks_of_queries * rows) * MASK
    return CLEAR, Work(trips=4, streamed=(rows + queries) * MASK, cached=moved, busy=busy)


def hash_rows(rows: int) -> tuple[Work, ...]:
    """tophash at bf69bd7: 8 warps with up to 255 registers, so that an SM holds one row at a time.

    Slots: about 2,920 instructions a warp, of which the 212 of the search are issued in 7 rounds.
    """
    turns = -(-rows // 132)
    select = Work(
        trips=3 * turns,
        streamed=rows * 75_520.0,
        slots=turns * 8 * (2920 + 6 * 212),
        busy=min(1.0, FEW_SMS * rows / 132),
        alone=True,
    )
    return (select,) if rows == 1 else (CLEAR, select)


def one(size: int) -> tuple[Work, ...]:
    """masked_linear of one token: route, columns, rows."""
    return (Work(trips=3, gathered=size * SLAB),)


def dense(rows: int, size: int = 2) -> tuple[Work, ...]:
    """torch's product with the whole weight."""
    return (Work(streamed=size * (DENSE + rows * (14336 + 4096.0)), operations=2 * rows * DENSE),)


FEW = (Work(trips=3), Work(trips=2, gathered=2 * SLAB), Work())  # masked_linear of 2 to 16 rows: gather, rows, combine
FUSED = (Work(trips=64 * 3, gathered=2 * SLAB, busy=64 / 132),)  # of 64 tokens: 64 blocks, each 64 steps of three trips
PREFILL = (Work(trips=3, gathered=2048 * 8192.0 * 2), Work(trips=3, gathered=2 * SLAB, operations=2 * 2048 * SLAB))


def feature(tokens: int) -> tuple[Work, ...]:
    """prompt_feature at bf69bd7: 224 blocks of 64 columns, each over all tokens."""
    return (Work(trips=2 + tokens // 64, streamed=tokens * 14336 * 2.0),)


_FITTED = (
    *(Row("mask_match", f"1 query, N={rows:,}, D=14336", scan(rows)) for rows in (1_000, 7_000, 100_000, 1_000_000)),
    Row("mask_match", "1 query, N=7,000, D=1536", (CLEAR, Work(trips=4, streamed=7_000 * 192.0, early=True))),
    Row("mask_match", "16 queries, N=7,000, D=14336", tiles(16, 7_000, 32, 128, 55 / 132)),
    Row("mask_match", "2048 queries, N=7,000, D=14336", tiles(2048, 7_000, 128, 128, 1.0)),
    Row("tophash", "1 row, D=14336, k=4096", hash_rows(1)),
    Row("tophash", "8192 rows, D=14336, k=4096", hash_rows(8192)),
    Row("masked_linear", "1 x 1 token, D=1536, float32", (Work(trips=3, gathered=440 * 576 * 4.0),)),
    Row("masked_linear", "1 x 1 token, D=14336, float32", one(4)),
    Row("masked_linear", "1 x 1 token, D=14336, bfloat16", one(2)),
    Row("masked_linear", "1 x 1 token, D=14336, float16", one(2)),
    Row("masked_linear", "4 x 1 token, D=14336, bfloat16", FEW),
    Row("layer", "decode, 1 x 1 token, D=14336, N=7,000, unmatched", (*dense(1), Work())),
    Row("layer", "decode, 4 x 1 token, D=14336, N=7,000, unmatched", (*dense(4), Work(), Work(), Work())),
)
_FITTED_PEERS = (
    ("dense product", Row("masked_linear", "1 x 1 token, D=14336, float32", dense(1, 4))),
    ("dense product", Row("masked_linear", "1 x 1 token, D=14336, bfloat16", dense(1))),
    ("dense product", Row("masked_linear", "1 x 64 tokens, D=14336, bfloat16", dense(64))),
    ("dense product", Row("masked_linear", "1 x 2048 tokens, D=14336, bfloat16", dense(2048))),
)
_SHOWN = (
    Row("mask_match", "16 queries, N=100,000, D=14336", tiles(16, 100_000, 32, 128, 1.0)),
    Row("tophash", "64 rows, D=14336, k=4096", hash_rows(64), note="three times one row's: not explained"),
    Row("masked_linear", "1 x 64 tokens, D=14336, bfloat16", FUSED),
    Row("masked_linear", "1 x 2048 tokens, D=14336, bfloat16", PREFILL, note="the product waits for its gathers"),
    Row("layer", "decode, 1 x 1 token, D=14336, N=7,000, matched", (*dense(1), *one(2))),
    Row("layer", "decode, 4 x 1 token, D=14336, N=7,000, matched", (*dense(4), *FEW)),
    Row(
        "layer",
        "prefill, 1 x 64 tokens, D=14336, N=7,000, unmatched",
        (*dense(64), *feature(64), *hash_rows(1), *scan(7_000), Work()),
    ),
    Row(
        "layer",
        "prefill, 1 x 64 tokens, D=14336, N=7,000, matched",
        (*dense(64), *feature(64), *hash_rows(1), *scan(7_000), *FUSED),
    ),
    Row(
        "layer",
        "prefill, 1 x 2048 tokens, D=14336, N=7,000, unmatched",
        (*dense(2048), *feature(2048), *hash_rows(1), *scan(7_000), Work(), Work()),
    ),
    Row(
        "layer",
        "prefill, 1 x 2048 tokens, D=14336, N=7,000, matched",
        (*dense(2048), *feature(2048), *hash_rows(1), *scan(7_000), *PREFILL),
    ),
)

PLANNED: tuple[Row, ...] = ()
"""The kernels of today: bench, case, kernels, target in microseconds."""


def measured() -> list[Measured]:
    """The rows that were counted, with the seconds of the run: graph replays over inputs that are not in the cache."""
    rows = {(row["bench"], row["case"]): row for row in json.loads(RUN.read_text(encoding="utf-8"))["rows"]}
    found = []
    for row, fitted in [*((row, True) for row in _FITTED), *((row, False) for row in _SHOWN)]:
        found.append(Measured(row, rows[row.bench, row.case]["seconds"]["graph cold"]["p50"], fitted))
    for peer, row in _FITTED_PEERS:
        seconds = rows[row.bench, row.case]["peers"][peer]["seconds"]["graph cold"]["p50"]
        found.append(Measured(row._replace(bench=f"torch's {peer}"), seconds, True))
    return found
