"""What a call costs the host: microseconds from Python until it is issued, the device not waited for.

    python bench/run.py --only host [--gpu]

An eager decode step pays this once per op and token, whatever the device does meanwhile. Beside each stands torch.add
on one number, the least that a torch op costs on that host, in the same turns.
"""

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch
from cases import Settings
from shapes import LLAMA, SMOLLM, columns, count_of, masks

from memoir_fast import backends, ops
from memoir_fast.modules import MemoirLinear

CALLS, TURNS = 50, 15
MOST = 25.0  # us, on a host where torch.add takes REFERENCE
REFERENCE = 7.6


def contenders(device: str, quick: bool) -> dict[str, Callable[[], object]]:
    """Each op of the hot path on one decode token's tensors, by name; `torch.add` first."""
    layer = LLAMA if device == "cuda" else SMOLLM
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    one = torch.zeros((), device=device)
    x = torch.randn((1, 1, layer.width), device=device).to(dtype)
    marked, mu = torch.ones((1, 1), dtype=torch.bool, device=device), torch.zeros(layer.width, device=device)
    permutation = torch.randperm(layer.width).int().to(device)
    feature = torch.randn((1, layer.width), device=device)
    query, store, count = masks(1, layer, device), masks(64, layer, device), count_of(64, device)
    thresholds = torch.full((64,), layer.min_overlap, dtype=torch.int32, device=device)
    memory = torch.randn((layer.width, layer.outputs), device=device).to(dtype)
    active, route = columns(1, layer, device), torch.zeros(1, dtype=torch.int32, device=device)
    base = torch.zeros((1, 1, layer.outputs), device=device, dtype=dtype)
    edited = MemoirLinear(torch.nn.Linear(layer.width, layer.outputs, bias=False, dtype=dtype, device=device), layer.k)
    edited.store.append(query[0], active[0])
    edited.router = lambda _: route
    found = {
        "torch.add": lambda: torch.add(one, one),
        "prompt_feature": lambda: ops.prompt_feature(x, marked, mu, check=False),
        "tophash": lambda: ops.tophash(feature, layer.k, permutation, check=False),
        "mask_columns": lambda: ops.mask_columns(query, layer.k),
        "mask_match": lambda: ops.mask_match(query, store, count, thresholds),
        "masked_linear": lambda: ops.masked_linear(x, memory, active, route),
        "masked_linear_add_": lambda: ops.masked_linear_add_(base, x, memory, active, route),
        "base layer": lambda: edited.base(x),
        "layer, routed": lambda: edited(x),
    }
    return dict(list(found.items())[:3]) if quick else found


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
