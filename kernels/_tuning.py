"""Finds the fastest launch configurations of the Triton kernels on this GPU and writes them to the user's table.

Nothing here runs by itself: kernels read the table (`memoir_fast.kernels._launch`), they never time themselves.
"""

import itertools
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from memoir_fast.kernels import (
    _common,
    _launch,
    mask_columns,
    mask_match,
    mask_overlap,
    masked_linear,
    memory_update,
    prompt_feature,
    route_rows,
    tophash,
)

from memoir_fast import mask_format
from memoir_fast.atomic import replace
from memoir_fast.errors import BackendError

logger = logging.getLogger("memoir_fast")

_WIDTH, _OUTPUTS, _ACTIVE, _EDITS = 14336, 4096, 4096, 7000  # Llama-3-8B's layer, and a large store
_FULL: dict[str, dict[str, tuple[int, ...]]] = {
    "prompt_feature": {"BLOCK_D": (32, 64, 128), "num_warps": (1, 2, 4, 8)},
    "tophash": {"num_warps": (8, 16, 32)},
    "mask_columns": {"num_warps": (2, 4, 8)},
    "route_rows": {"num_warps": (2, 4, 8)},
    "mask_overlap": {"BLOCK_N": (16, 32, 64), "BLOCK_W": (64, 128), "num_warps": (2, 4, 8)},
    "mask_match": {"BLOCK_N": (16, 32, 64), "PROGRAMS": (132, 264, 528), "num_warps": (2, 4, 8)},
    "masked_linear_one": {
        "BLOCK_O": (32, 64, 128),
        "BLOCK_K": (128, 256, 512),
        "SPLITS": (1, 2, 4, 8),
        "num_warps": (4, 8, 16),
    },
    "masked_linear_rows": {
        "BLOCK_O": (32, 64, 128),
        "BLOCK_K": (64, 128),
        "SPLITS": (2, 4, 8),
        "num_stages": (3, 4, 5),
    },
    "masked_linear_fused": {
        "BLOCK_S": (32, 64),
        "BLOCK_O": (32, 64, 128),
        "BLOCK_K": (32, 64),
        "num_stages": (2, 3, 4),
    },
    "masked_linear_prefill": {
        "BLOCK_S": (64, 128),
        "BLOCK_O": (128, 256),
        "BLOCK_K": (32, 64),
        "num_warps": (4, 8),
        "num_stages": (3, 4),
    },
    "masked_linear_grad_x": {"BLOCK_S": (64, 128), "BLOCK_J": (64, 128), "BLOCK_O": (32, 64), "num_warps": (4, 8)},
    "masked_linear_grad_memory": {"BLOCK_J": (64, 128), "BLOCK_O": (64, 128), "num_warps": (4, 8)},
    "memory_update": {"BLOCK_J": (32, 64, 128), "BLOCK_O": (64, 128), "num_warps": (4, 8)},
}


@dataclass(frozen=True)
class Trial:
    """A kernel to tune: its name in the table, the key to write, the op's word, and one call of it."""

    kernel: str
    key: str
    op: str
    call: Callable[[], Any]


def tune(ops: list[str] | None = None, quick: bool = False) -> list[dict[str, Any]]:
    """Times launch configurations at a Llama-3-8B layer's sizes (bfloat16) and writes the best to the user's table.

    A configuration whose result differs from the shipped one's beyond rounding, or that does not compile, is passed
    over. Entries are written under this GPU's name and the measured shape; other entries of the table stay.

    Args:
        ops: the ops to tune, by their words, e.g. ["tophash", "masked_linear"]. Default: all.
        quick: vary one parameter at a time around the shipped configuration instead of trying every combination.

    Returns:
        One row per kernel: kernel, key, configuration, microseconds, shipped_microseconds, tried.

    Raises:
        BackendError: without a CUDA device that Triton can serve, or under TRITON_INTERPRET=1.
        ValueError: on an unknown op.

    Example:
        >>> import torch
        >>> from memoir_fast.kernels._tuning import tune
        >>> rows = tune(["tophash"], quick=True) if torch.cuda.is_available() else []
    """
    if not torch.cuda.is_available():
        raise BackendError("tuning needs a CUDA device, torch sees none")

    reason = _common.unsupported(torch.empty(0, device="cuda"))
    if reason:
        raise BackendError(f"tuning cannot run the Triton kernels here: {reason}")
    trials = _trials("cuda")
    words = sorted({trial.op for trial in trials})
    unknown = sorted(set(ops or ()) - set(words))
    if unknown:
        raise ValueError(f"an op to tune is one of {', '.join(words)}; got {unknown[0]!r}")
    chosen = [trial for trial in trials if not ops or trial.op in ops]
    name = torch.cuda.get_device_name()
    rows = [_tune_one(trial, name, quick, _microseconds) for trial in chosen]
    _write(name, rows)
    _launch.forget()
    return rows


def _candidates(kernel: str, shipped: dict[str, int], quick: bool) -> Iterator[dict[str, int]]:
    space = _FULL[kernel]
    if quick:
        for parameter, values in space.items():
            yield from ({parameter: value} for value in values if value != shipped.get(parameter))
        return
    for values in itertools.product(*space.values()):
        candidate = dict(zip(space, values, strict=True))
        if any(shipped.get(parameter) != value for parameter, value in candidate.items()):
            yield candidate


def _tune_one(
    trial: Trial, device_name: str, quick: bool, measure: Callable[[Callable[[], Any]], float]
) -> dict[str, Any]:
    shipped = _launch.lookup(trial.kernel, device_name, (trial.key, "2 bytes"))
    expected, base = trial.call(), measure(trial.call)
    best, fastest, tried = dict(shipped), base, 1
    for candidate in _candidates(trial.kernel, shipped, quick):
        with _launch.override(trial.kernel, candidate):
            try:
                _assert_same(trial.call(), expected)
                time = measure(trial.call)
            except Exception as error:  # a configuration too large for this GPU fails in its own way on every version
                logger.debug("%s %s passed over: %s", trial.kernel, candidate, error)
                continue
        tried += 1
        if time < fastest:
            best, fastest = shipped | candidate, time
    return {
        "kernel": trial.kernel,
        "key": trial.key,
        "configuration": best,
        "microseconds": fastest,
        "shipped_microseconds": base,
        "tried": tried,
    }


def _assert_same(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=2e-2, atol=2e-2)


def _microseconds(call: Callable[[], Any]) -> float:
    """Median time of a call with a cold L2 cache, as Triton measures it."""
    from triton.testing import do_bench

    return 1e3 * do_bench(call, warmup=5, rep=20, return_mode="median")


def _write(device_name: str, rows: list[dict[str, Any]]) -> None:
    """Lays the rows over the user's table; the file is replaced in one step."""
    table = _launch.read_user_table()
    for row in rows:
        table.setdefault(device_name, {}).setdefault(row["kernel"], {})[row["key"]] = row["configuration"]
    path = _launch.user_table()
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, f"{json.dumps(table, indent=2)}\n".encode())


def _trials(device: str) -> list[Trial]:
    """One call per kernel at the sizes of a real layer; results of in-place calls are taken from fresh zeros."""

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device, dtype=torch.bfloat16)

    width, outputs, k = _WIDTH, _OUTPUTS, _ACTIVE
    words = mask_format.words(width)
    draw = torch.Generator().manual_seed(0)
    permutation = torch.randperm(width, generator=draw).int().to(device)
    columns = permutation[:k].sort().values[None].contiguous()
    memory, x = normal(width, outputs) / 64, normal(1, 2048, width)
    grad, route = normal(1, 220, outputs), torch.zeros(4, dtype=torch.int32, device=device)
    feature, mu = torch.randn(1, width, device=device), torch.zeros(width, device=device)
    store = torch.randint(-(2**31), 2**31 - 1, (_EDITS, words), dtype=torch.int32, device=device)
    count, marked = torch.tensor(_EDITS, dtype=torch.int32, device=device), torch.ones(1, 512, dtype=torch.bool)
    least = torch.ones(_EDITS, dtype=torch.int32, device=device)
    marked = marked.to(device)
    a, c = normal(220, k), normal(220, outputs)

    def product(batch: int, tokens: int) -> Callable[[], Any]:
        rows = x[0, : batch * tokens].view(batch, tokens, width)
        return lambda: masked_linear.masked_linear(rows, memory, columns, route[:batch])

    def gradient(need_x: bool) -> Callable[[], Any]:
        inputs = x[:, :220]
        return lambda: masked_linear.masked_linear_backward(
            grad, inputs, memory, columns, route[:1], need_x, not need_x
        )

    def update() -> torch.Tensor:
        target = torch.zeros_like(memory)
        memory_update.memory_update(target, columns[0], a, c)
        return target

    shape, mask = f"k{k} O{outputs}", f"W{words}"
    return [
        Trial(
            "prompt_feature",
            f"D{width}",
            "prompt_feature",
            lambda: prompt_feature.prompt_feature(x[:, :512], marked, mu),
        ),
        Trial("tophash", f"D{width}", "tophash", lambda: tophash.tophash(feature, k, permutation)),
        Trial("mask_columns", mask, "mask_columns", lambda: mask_columns.mask_columns(store[:1], k)),
        Trial(
            "route_rows",
            mask,
            "route_rows",
            lambda: route_rows.route_rows(store, least, route[:1], k, width)[0],
        ),
        Trial("mask_overlap", mask, "mask_overlap", lambda: mask_overlap.mask_overlap(store[:1], store)),
        Trial("mask_match", mask, "mask_match", lambda: mask_match.mask_match(store[:1], store, count, least)),
        Trial("masked_linear_one", shape, "masked_linear", product(1, 1)),
        Trial("masked_linear_rows", shape, "masked_linear", product(4, 1)),
        Trial("masked_linear_fused", shape, "masked_linear", product(1, 64)),
        Trial("masked_linear_prefill", shape, "masked_linear", product(1, 2048)),
        Trial("masked_linear_grad_x", shape, "masked_linear", gradient(True)),
        Trial("masked_linear_grad_memory", shape, "masked_linear", gradient(False)),
        Trial("memory_update", shape, "memory_update", update),
    ]
