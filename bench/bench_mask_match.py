"""CPU speed of the extension beside its peers: one thread, pinned, contenders interleaved, every result checked first.

    python bench/bench_mask_match.py [--json FILE] [--rounds 15] [--strict]

Searches D=14336 masks (1,792 bytes each) for mask_match, and times masked_linear and tophash on one token of a layer
with D=14336, O=4096, k=4096. Prints the best and the median time of all rounds. A ratio is the median over rounds of
the ratio within a round, so that a machine that other work slows down for a while slows both sides. Peers that are not
installed say so.
"""

import argparse
import functools
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from match_cases import cases  # noqa: F401 (what bench/run.py takes)
from torch.nn import functional

from memoir_fast import backends, native
from memoir_fast.ops import mask_match, masked_linear, tophash
from memoir_fast.reference.tophash import unpack
from memoir_fast.sketch import mask_match_sketch, miss_probability

WIDTH, OUTPUTS, ACTIVE = 14336, 4096, 4096
ROW_BYTES = WIDTH // 8
LARGE, SMALL, BATCH = 100_000, 7_000, 16


@dataclass
class Row:
    """Times of one contender in one case."""

    case: str
    contender: str
    best_ms: float
    median_ms: float
    gigabytes_per_second: float | None


@dataclass
class Verdict:
    """One ratio that has to hold."""

    claim: str
    value: float
    limit: float
    holds: bool


def interleave(contenders: dict[str, Callable], rounds: int) -> dict[str, list[float]]:
    """Seconds of every contender in every round: each round runs all of them, twice in a row, and keeps the second."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            run()
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


class Report:
    """Collects rows and verdicts, printing each as it comes."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self.rows: list[Row] = []
        self.verdicts: list[Verdict] = []

    def measure(self, case: str, contenders: dict[str, Callable], read_bytes: int | None = None) -> dict[str, float]:
        """Time of every contender over that of the first. `read_bytes` is what each of them has to read at least."""
        times = interleave(contenders, self.rounds)
        first = np.array(next(iter(times.values())))
        for name, seconds in times.items():
            rate = read_bytes / min(seconds) / 1e9 if read_bytes else None
            row = Row(case, name, min(seconds) * 1e3, float(np.median(seconds)) * 1e3, rate)
            self.rows.append(row)
            shown = f"{rate:8.1f} GB/s" if rate else ""
            print(f"{case:34} {name:34} {row.best_ms:10.3f} ms  (median {row.median_ms:9.3f}) {shown}", flush=True)
        return {name: float(np.median(np.array(seconds) / first)) for name, seconds in times.items()}

    def claim(self, text: str, value: float, limit: float, at_least: bool = True) -> None:
        holds = value >= limit if at_least else value <= limit
        self.verdicts.append(Verdict(text, value, limit, holds))
        sign = ">=" if at_least else "<="
        print(f"  {'holds ' if holds else 'MISSED'} {text}: {value:.2f} (wanted {sign} {limit:.2f})", flush=True)

    def absent(self, contender: str, why: str) -> None:
        print(f"{'':34} {contender:34} not measured: {why}")


def masks(rows: int) -> torch.Tensor:
    """Random masks; what they hold does not change how long a scan takes."""
    return torch.randint(-(1 << 31), (1 << 31) - 1, (rows, WIDTH // 32), dtype=torch.int32)


def numpy_match(query: np.ndarray, store: np.ndarray) -> int:
    """Row of the largest overlap, by numpy's popcount; in blocks, so that the temporary stays in the cache."""
    best, row = -1, -1
    for first in range(0, len(store), 512):
        overlap = np.bitwise_count(store[first : first + 512] & query).sum(axis=1, dtype=np.int32)
        at = int(overlap.argmax())
        if overlap[at] > best:
            best, row = int(overlap[at]), first + at
    return row


def faiss_index(store: torch.Tensor, report: Report):
    """FAISS's exhaustive binary index over the same bytes (Hamming distance), or None."""
    try:
        import faiss
    except ImportError:
        report.absent("FAISS IndexBinaryFlat", "faiss is not installed (pip install --no-deps faiss-cpu)")
        return None
    faiss.omp_set_num_threads(1)
    index = faiss.IndexBinaryFlat(WIDTH)
    index.add(store.numpy().view(np.uint8))
    return index


def bench_match(report: Report) -> None:
    store, query = masks(LARGE), masks(BATCH)
    query[0] = store[LARGE - 1]
    query_bytes, words = query.numpy().view(np.uint8), store.numpy().view(np.uint64)
    one = query[:1]
    all_rows, few_rows = (torch.tensor(count, dtype=torch.int32) for count in (LARGE, SMALL))
    edit, overlap = mask_match(one, store, all_rows, 1)
    assert backends.last_used()["mask_match"] == "cpu"
    assert edit.item() == LARGE - 1 == numpy_match(one.numpy().view(np.uint64)[0], words)
    assert overlap.item() == int(unpack(one, WIDTH).sum())

    def add_faiss(contenders: dict[str, Callable], index, queries: int) -> None:
        if index is not None:
            contenders["FAISS IndexBinaryFlat"] = lambda: index.search(query_bytes[:queries], 1)

    index = faiss_index(store, report)
    contenders = {
        "mask_match": lambda: mask_match(one, store, all_rows, 1),
        "plain sum over the store": lambda: store.view(torch.int64).sum(),
        "numpy bitwise_count": lambda: numpy_match(one.numpy().view(np.uint64)[0], words),
    }
    add_faiss(contenders, index, 1)
    over = report.measure(f"1 query, N={LARGE}", contenders, LARGE * ROW_BYTES)
    report.claim("share of read bandwidth", over["plain sum over the store"], 0.9)
    if index is not None:
        report.claim("x FAISS", over["FAISS IndexBinaryFlat"], 1.2)

    contenders = {
        "mask_match": lambda: mask_match(one, store, all_rows, 1),
        "mask_match_sketch, 4 tiles": lambda: mask_match_sketch(one, store, all_rows, 1),
    }
    report.measure(f"1 query, N={LARGE}", contenders)
    missed = miss_probability(WIDTH, ACTIVE, round(0.465 * ACTIVE), LARGE, base=0.30)
    print(f"  mask_match_sketch misses a row that shares .465 of its bits, others .30, with probability {missed:.1e}")

    contenders = {f"mask_match, {BATCH} queries": lambda: mask_match(query, store, all_rows, 1)}
    add_faiss(contenders, index, BATCH)
    over = report.measure(f"{BATCH} queries, N={LARGE}", contenders, LARGE * ROW_BYTES)
    if index is not None:
        report.claim("x FAISS", over["FAISS IndexBinaryFlat"], 2.0)

    few = store[:SMALL].clone()
    index = faiss_index(few, report)
    contenders = {
        "mask_match": lambda: mask_match(one, few, few_rows, 1),
        "numpy bitwise_count": lambda: numpy_match(one.numpy().view(np.uint64)[0], few.numpy().view(np.uint64)),
    }
    add_faiss(contenders, index, 1)
    over = report.measure(f"1 query, N={SMALL}", contenders, SMALL * ROW_BYTES)
    if index is not None:
        report.claim("x FAISS", over["FAISS IndexBinaryFlat"], 1.1)

    rows = SMALL // 10  # one byte per bit, and a sum that widens it: a tenth of the rows is long enough to watch
    wide, wide_query = unpack(few[:rows], WIDTH), unpack(one, WIDTH)
    count = torch.tensor(rows, dtype=torch.int32)
    contenders = {
        "mask_match": lambda: mask_match(one, few[:rows], count, 1),
        "torch bool masks": lambda: (wide & wide_query).sum(dim=1).max(dim=0),
    }
    report.measure(f"1 query, N={rows}", contenders)


def bench_masked_linear(report: Report) -> None:
    columns = torch.randperm(WIDTH)[:ACTIVE].sort().values[None].int()
    route = torch.zeros(1, dtype=torch.int32)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        x = torch.randn(1, 1, WIDTH).to(dtype)
        memory = torch.randn(WIDTH, OUTPUTS).to(dtype)
        weight = memory.t().contiguous()
        active = columns[0].long()
        expected = x[0, 0, active].double() @ memory[active].double()
        error = (masked_linear(x, memory, columns, route).double() - expected).abs().max() / expected.abs().max()
        assert error < 0.01 and backends.last_used()["masked_linear"] == "cpu"
        contenders = {
            "masked_linear": functools.partial(masked_linear, x, memory, columns, route),
            "torch linear, all columns": functools.partial(functional.linear, x, weight),
        }
        over = report.measure(f"masked_linear, 1 token, {name}", contenders)
        share = 1 / over["torch linear, all columns"]
        report.claim(f"{name}: time over k/D of the dense product", share / (ACTIVE / WIDTH), 1.3, at_least=False)


def topk_and_pack(feature: torch.Tensor, permutation: torch.Tensor) -> np.ndarray:
    chosen = torch.topk(feature.abs(), ACTIVE, sorted=False).indices
    bits = torch.zeros(WIDTH, dtype=torch.bool)
    bits[permutation[chosen]] = True
    return np.packbits(bits.numpy(), bitorder="little")


def bench_tophash(report: Report) -> None:
    feature, permutation = torch.randn(1, WIDTH), torch.randperm(WIDTH)
    order = permutation.int()
    mask, _ = tophash(feature, ACTIVE, order)
    assert backends.last_used()["tophash"] == "cpu"
    assert np.array_equal(mask[0].numpy().view(np.uint8)[:ROW_BYTES], topk_and_pack(feature[0], permutation))
    contenders = {
        "tophash": lambda: tophash(feature, ACTIVE, order),
        "torch.topk and packing": lambda: topk_and_pack(feature[0], permutation),
    }
    over = report.measure(f"tophash, D={WIDTH}, k={ACTIVE}", contenders)
    report.claim("x torch.topk and packing", over["torch.topk and packing"], 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    parser.add_argument("--rounds", type=int, default=15, help="times that each contender runs (default: 15)")
    parser.add_argument("--strict", action="store_true", help="exit with 1 where a ratio is missed")
    arguments = parser.parse_args()

    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    torch.manual_seed(0)
    extension = native.extension()
    machine = {
        "cpu": cpu_name(),
        "core": core,
        "cpu_path": extension.cpu_path(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    report = Report(arguments.rounds)
    with backends.use("cpu"):
        bench_match(report)
        bench_masked_linear(report)
        bench_tophash(report)
    if arguments.json:
        figures = {
            "machine": machine,
            "rows": [asdict(r) for r in report.rows],
            "claims": [asdict(v) for v in report.verdicts],
        }
        with open(arguments.json, "w") as file:
            json.dump(figures, file, indent=1)
    if arguments.strict and not all(verdict.holds for verdict in report.verdicts):
        raise SystemExit(1)


def cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
