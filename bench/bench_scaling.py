"""How cost grows: with stored edits (search, store, saved file, false matches), k, D, queries and prompt length.

Every row is beside its own formula: bytes over the bandwidth measured in the same turns for times, the layout's bytes
for sizes, the distribution of the best of N random overlaps for false matches.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import bench_mask_match
import bench_masked_linear
import bench_prompt_feature
import bench_tophash
import measure
import torch
from benchmark import Benchmark
from cases import Case, Prepared, Settings, free_bytes, rows_of
from chance import best_below, location, threshold
from figure import plain
from models import bare_tokenizer, llama
from shapes import SMOLLM, Layer, columns, mask_of, masks

from memoir_fast import Memoir, MemoirConfig
from memoir_fast.core.calibration import gumbel
from memoir_fast.core.edit import Edit

GROWING = (bench_mask_match.growing, bench_masked_linear.growing, bench_tophash.growing, bench_prompt_feature.growing)
STORED = (1_000, 10_000, 100_000, 1_000_000)
_BYTES_PER_EDIT = 8_000  # of a memory that is built and saved: masks and columns twice, prompts and targets as text
PROMPTS, RATE, DENSITY = 1_024, 0.05, 0.25


def sweep() -> Iterator[Case]:
    """One number at a time, no peers."""
    for growing in GROWING:
        for case in growing():
            name, numbers = f"{case.bench}, {case.name}", {"op": case.bench} | case.parameters
            yield replace(case, bench="scaling", name=name, parameters=numbers, make=partial(_alone, case))


def _alone(case: Case, settings: Settings) -> Prepared:
    return replace(case.make(replace(settings, compile=False, peers=False)), peers={}, op=case.bench)


def sizes(stored: int, layer: Layer) -> dict[str, Any]:
    """Bytes of a memory with `stored` synthetic edits in memory and saved, beside the layout's own formula."""
    memoir = tiny_memoir(layer)
    store = memoir.layer.store
    own = columns(min(stored, 256), layer)
    mask_rows = mask_of(own, layer)
    repeats = -(-stored // len(own))
    edits = [Edit(f"prompt {edit}", "target") for edit in range(stored)]
    memoir.edits.extend(edits, mask_rows.repeat(repeats, 1)[:stored])
    with tempfile.TemporaryDirectory() as folder:
        memoir.save_pretrained(folder)
        saved = {path.suffix: path.stat().st_size for path in Path(folder).iterdir() if path.is_file()}
        model, tokenizer = memoir.detach(), memoir.tokenizer
        started = time.perf_counter()
        Memoir.from_pretrained(model, tokenizer, folder, check=False)
        opened = time.perf_counter() - started
    return {
        "N": stored,
        "store_bytes": store.nbytes,
        "store_bytes_formula": 4 * (layer.words + 4) * len(store.masks),
        "saved_tensor_bytes": saved.get(".safetensors", 0),
        "saved_tensor_bytes_formula": 4 * layer.words * stored + 8 * layer.width,
        "saved_text_bytes": saved.get(".jsonl", 0),
        "open_seconds": opened,
    }


def tiny_memoir(layer: Layer) -> Memoir:
    """A memory on a layer of the given sizes, in a model of one random block."""
    model = llama(hidden=layer.outputs, intermediate=layer.width, layers=1, heads=9, kv_heads=3, vocabulary=512)
    settings = MemoirConfig(layer="model.layers.0.mlp.down_proj", k=layer.k, background=1, routing="paper")
    return Memoir.attach(model, bare_tokenizer(), settings)


def false_matches(stored: int, layer: Layer) -> dict[str, Any]:
    """How many of 1,024 random queries match one of `stored` random masks, at the threshold for 5 % by formula.

    Beside it where the best overlap lies: the location of the Gumbel distribution that calibration fits, and that of
    the formula, both as a share of k.
    """
    below = best_below(layer.k, DENSITY, stored)
    least, store, query = threshold(below, RATE), masks(stored, layer), mask_of(columns(PROMPTS, layer), layer)
    best = bench_mask_match.most_overlap(query, store)
    place, _ = gumbel(best.double())
    return {
        "N": stored,
        "threshold": least / layer.k,
        "false_match_rate": float((best >= least).double().mean()),
        "false_match_rate_formula": 1 - float(below[least]),
        "best_overlap": place / layer.k,
        "best_overlap_formula": location(below) / layer.k,
    }


def rows(settings: Settings, timer: measure.Timer) -> Iterator[dict[str, Any]]:
    """Times, then sizes, then false matches."""
    some = 1 if settings.quick else None
    built = STORED[: some or (2 if settings.device == "cuda" else None)]  # memories are built on the CPU
    yield from rows_of(list(sweep())[:some], replace(settings, seconds=settings.seconds / 2), timer)
    for stored in built:
        row = {"bench": "scaling", "parameters": SMOLLM.sizes | {"N": stored}}
        case = f"memory, N={stored:,}, D={SMOLLM.width}"
        need, free = _BYTES_PER_EDIT * stored, free_bytes(torch.device("cpu"))
        if need > 0.9 * free:
            yield row | {"case": case, "absent": f"needs {need / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free"}
        else:
            yield row | {"case": case, "figures": sizes(stored, SMOLLM)}
        case = f"false matches, N={stored:,}, D={SMOLLM.width}"
        yield row | {"case": case, "figures": false_matches(stored, SMOLLM)}


def chance(figures: dict[str, Any], _: Sequence[dict[str, Any]], axes: Any) -> None:
    """Best overlap of random masks against N: what the threshold has to stay above."""
    rows = [row["figures"] for row in figures["rows"] if row["case"].startswith("false matches")]
    if not rows:
        return
    stored = [row["N"] for row in rows]
    for name, style, label in (
        ("best_overlap", "o", "measured, 1,024 queries"),
        ("best_overlap_formula", "k--", "formula"),
        ("threshold", "^:", "threshold for 5 % false matches"),
    ):
        axes.plot(stored, [row[name] for row in rows], style, label=label)
    axes.set(xscale="log", xlabel="stored edits N", ylabel="best overlap, share of k", ylim=(0.25, 0.55))
    plain(axes, stored)
    axes.axhline(0.5, color="0.5", linewidth=1)
    axes.annotate("tau = 0.5", (0.02, 0.5), xycoords=("axes fraction", "data"), va="bottom", color="0.4", fontsize=8)
    axes.set_title("Random masks: the best of N overlaps, D = 1536, k = 440")
    axes.legend(fontsize=7.5, loc="upper right", bbox_to_anchor=(1, 0.8))


BENCHMARK = Benchmark(
    "scaling",
    (
        *bench_mask_match.SOURCES,
        *bench_masked_linear.SOURCES,
        *bench_tophash.SOURCES,
        *bench_prompt_feature.SOURCES,
        "memoir_fast/modules/*.py",
        "memoir_fast/io/*.py",
    ),
    rows=rows,
    plots={"chance": chance},
)
