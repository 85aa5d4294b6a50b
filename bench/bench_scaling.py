"""How cost grows: with stored edits (search, store, saved file, false matches), k, D, queries and prompt length.

Every row is beside its own formula: bytes over the bandwidth measured in the same turns for times, the layout's bytes
for sizes, the distribution of the best of N random overlaps for false matches.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import bench_mask_match
import bench_masked_linear
import bench_prompt_feature
import bench_tophash
import measure
import torch
from cases import Case, Prepared, Settings, free_bytes, rows_of
from chance import best_below, location, threshold
from models import bare_tokenizer, llama
from shapes import LLAMA, SMOLLM, Layer, columns, count_of, masks

from memoir_fast import Memoir, MemoirConfig, ops
from memoir_fast.core.calibration import gumbel
from memoir_fast.core.edit import Edit
from memoir_fast.reference.tophash import pack

STORED = (1_000, 10_000, 100_000, 1_000_000)
_BYTES_PER_EDIT = 8_000  # of a memory that is built and saved: masks and columns twice, prompts and targets as text
PROMPTS, RATE, DENSITY = 1_024, 0.05, 0.25


def sweep() -> Iterator[Case]:
    """One number at a time, no peers."""

    def case(op: str, name: str, numbers: dict[str, Any], maker: Any, *arguments: Any, needs_bytes: int = 0) -> Case:
        def make(settings: Settings) -> Prepared:
            return replace(maker(*arguments, replace(settings, compile=False, peers=False)), peers={}, op=op)

        return Case("scaling", f"{op}, {name}", {"op": op} | numbers, make, needs_bytes)

    for stored in (3_000, 10_000, 30_000, 300_000):  # others are rows of mask_match
        numbers = LLAMA.sizes | {"N": stored, "B": 1}
        need = 2 * 4 * LLAMA.words * stored + (1 << 30)
        yield case("mask_match", f"N={stored:,}", numbers, bench_mask_match.make, LLAMA, 1, stored, needs_bytes=need)
    for queries in (2, 4, 8, 32):
        numbers = LLAMA.sizes | {"N": 7_000, "B": queries}
        yield case("mask_match", f"B={queries}", numbers, bench_mask_match.make, LLAMA, queries, 7_000)
    products = [(f"k={k}", replace(LLAMA, k=k), 1) for k in (512, 1024, 2048, 4096, 8192)]
    products += [(f"S={tokens}", LLAMA, tokens) for tokens in (4, 16)]
    for name, layer, tokens in products:
        numbers = layer.sizes | {"S": tokens, "dtype": "bfloat16"}
        yield case("masked_linear", name, numbers, bench_masked_linear.make, layer, 1, tokens, torch.bfloat16)
    for width in (1536, 4096, 8192, 14336, 28672):
        layer = Layer("-", width, 4096, width * 2 // 7)
        yield case("tophash", f"D={width}", layer.sizes, bench_tophash.make, layer, 1)
    for tokens in (16, 64, 256, 1024, 4096):
        numbers = LLAMA.sizes | {"S": tokens, "dtype": "bfloat16"}
        yield case(
            "prompt_feature", f"S={tokens}", numbers, bench_prompt_feature.make, LLAMA, 1, tokens, torch.bfloat16
        )


def sizes(stored: int, layer: Layer) -> dict[str, Any]:
    """Bytes of a memory with `stored` synthetic edits in memory and saved, beside the layout's own formula."""
    memoir = _tiny_memoir(layer)
    store = memoir.layer.store
    own = columns(min(stored, 256), layer)
    mask_rows = _masks_of(own, layer)
    repeats = -(-stored // len(own))
    store.extend(mask_rows.repeat(repeats, 1)[:stored], own.repeat(repeats, 1)[:stored])
    memoir.edits.update({edit: Edit(f"prompt {edit}", "target") for edit in range(stored)})
    with tempfile.TemporaryDirectory() as folder:
        memoir.save_pretrained(folder)
        saved = {path.suffix: path.stat().st_size for path in Path(folder).iterdir() if path.is_file()}
    return {
        "N": stored,
        "store_bytes": store.nbytes,
        "store_bytes_formula": 4 * (layer.words + layer.k + 1) * len(store.masks),
        "saved_tensor_bytes": saved.get(".safetensors", 0),
        "saved_tensor_bytes_formula": 4 * layer.words * stored + 8 * layer.width,
        "saved_text_bytes": saved.get(".jsonl", 0),
    }


def _tiny_memoir(layer: Layer) -> Memoir:
    """A memory on a layer of the given sizes, in a model of one random block."""
    model = llama(hidden=layer.outputs, intermediate=layer.width, layers=1, heads=9, kv_heads=3, vocabulary=512)
    settings = MemoirConfig(layer="model.layers.0.mlp.down_proj", k=layer.k, background=1)
    return Memoir.attach(model, bare_tokenizer(), settings)


def _masks_of(own: torch.Tensor, layer: Layer) -> torch.Tensor:
    """The packed masks of these columns: a saved memory is checked for that."""
    return pack(torch.zeros((len(own), layer.width), dtype=torch.bool).scatter_(1, own.long(), True))


def false_matches(stored: int, layer: Layer) -> dict[str, Any]:
    """How many of 1,024 random queries match one of `stored` random masks, at the threshold for 5 % by formula.

    Beside it where the best overlap lies: the location of the Gumbel distribution that calibration fits, and that of
    the formula, both as a share of k.
    """
    below = best_below(layer.k, DENSITY, stored)
    least, store, query = threshold(below, RATE), masks(stored, layer), _masks_of(columns(PROMPTS, layer), layer)
    _, best = ops.mask_match(query, store, count_of(stored, "cpu"), 1)
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
