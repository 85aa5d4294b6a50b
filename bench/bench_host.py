"""What a call costs the host: microseconds from Python until it is issued, the device not waited for.

    python bench/run.py --only host [--gpu]

An eager decode step pays this once per op and token, whatever the device does meanwhile. Beside each stands torch.add
on one number, the least that a torch op costs on that host, in the same turns.
"""

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import bench_code_route
import bench_layer
import bench_mask_columns
import bench_mask_match
import bench_masked_linear
import bench_prompt_feature
import bench_route_rows
import bench_tophash
import torch
from benchmark import Benchmark
from cases import Settings
from shapes import LLAMA, SMOLLM, Token

from memoir_fast import backends

ISSUED = (
    bench_prompt_feature.issue,
    bench_tophash.issue,
    bench_mask_columns.issue,
    bench_route_rows.issue,
    bench_code_route.issue,
    bench_mask_match.issue,
    bench_masked_linear.issue,
    bench_layer.issue,
)
CALLS, TURNS = 50, 15
MOST = 25.0  # us, on a host where torch.add takes REFERENCE
REFERENCE = 7.6


def contenders(device: str, quick: bool) -> dict[str, Callable[[], object]]:
    """`torch.add`, then each op of the hot path and the layer on one decode token's tensors, by name."""
    token = Token(LLAMA, torch.bfloat16, 64, device) if device == "cuda" else Token(SMOLLM, torch.float32, 64, device)
    one = torch.zeros((), device=device)
    found: dict[str, Callable[[], object]] = {"torch.add": lambda: torch.add(one, one)}
    for issue in ISSUED[: 2 if quick else None]:
        found |= issue(token)
    return found


def issued(run: Callable[[], object], synchronize: Callable[[], object]) -> float:
    """Microseconds of one of CALLS calls in a row, after the device has caught up."""
    synchronize()
    start = time.perf_counter()
    for _ in range(CALLS):
        run()
    taken = time.perf_counter() - start
    synchronize()
    return 1e6 * taken / CALLS


@torch.no_grad()
def rows(settings: Settings, _: object) -> Iterator[dict[str, Any]]:
    """One row with a figure for each op."""
    synchronize: Callable[[], object] = torch.cuda.synchronize if settings.device == "cuda" else lambda: None
    runs = contenders(settings.device, settings.quick)
    for run in runs.values():
        run()
    turns: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(3 if settings.quick else TURNS):
        for name, run in runs.items():
            turns[name].append(issued(run, synchronize))
    least = {name: median(taken) for name, taken in turns.items()}
    served = backends.last_used()
    row: dict[str, Any] = {
        "bench": "host",
        "case": f"us per call, {settings.device}",
        "parameters": {"device": settings.device, "calls": CALLS},
        "figures": least | {f"{name}, backend": served[name] for name in runs if name in served},
    }
    if settings.device == "cuda" and not settings.quick:
        bound = MOST * max(1.0, least["torch.add"] / REFERENCE)
        row["targets"] = [
            {"what": f"us to issue {name}", "value": least[name], "most": round(bound, 1)}
            for name in runs
            if name in backends.OPS
        ]
    yield row


BENCHMARK = Benchmark("host", (*bench_layer.SOURCES, "memoir_fast/ops/*.py"), rows=rows)
