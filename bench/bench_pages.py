"""How a memory of many pages costs: 1,000 to 1,000,000 synthetic edits, opened, searched, decoded with, and grown.

    python bench/run.py --only pages --json bench/results/cpu-<date>-pages.json

At SmolLM2's layer. As many pages as there are edits for are filled, up to 105; beyond, the edits share these, and what
the others would take is computed. Whatever is opened or grown has a process of its own, so that its memory is its own.
Times are processor time of one thread: what else the machine does shows in them little.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import bench_layer
import measure
import torch
from bench_generate import PROMPT, STEPS, Variants, decode
from bench_scaling import STORED, tiny_memoir
from benchmark import Benchmark
from cases import Settings
from models import bare_tokenizer, sharing
from shapes import LLAMA, SMOLLM, masks

from memoir_fast import Memoir, MemoirConfig
from memoir_fast.core.edit import Edit
from memoir_fast.core.pages import page_edits
from memoir_fast.errors import MemoirError
from memoir_fast.hf.loading import load_model
from memoir_fast.modules import MaskStore

MOST_PAGES = 105  # that are filled: 372 MB
MANY_PAGES = 40
PER_PAGE = page_edits(SMOLLM.width, SMOLLM.k)
PAGE_BYTES = 4 * SMOLLM.width * SMOLLM.outputs
_NAMES = ("unmatched", "matched")
_STEP = 1_000  # rows that a store grows by


def pages_for(stored: int) -> int:
    """How many pages so many edits live on."""
    return -(-stored // PER_PAGE)


def spread(memoir: Memoir, stored: int, made: int) -> None:
    """Lets the first `stored` edits live on `made` pages, each filled with small numbers."""
    memory, store = memoir.layer.memory, memoir.layer.store
    while memory.pages < made:
        memory.open()
    memory.weight.normal_().mul_(1e-3)
    store.page[:stored] = torch.arange(stored, dtype=torch.int32) // PER_PAGE % made


def opening(stored: int) -> dict[str, Any]:
    """Bytes of a memory with so many edits in a process and on disk; and seconds to open it, and to search."""
    needed = pages_for(stored)
    made = min(needed, MOST_PAGES)
    torch.manual_seed(0)
    memoir = tiny_memoir(SMOLLM)
    edits = [Edit(f"prompt {edit}", "target") for edit in range(stored)]
    memoir.edits.extend(edits, _masks(stored, memoir))
    spread(memoir, stored, made)
    with tempfile.TemporaryDirectory() as folder:
        memoir.save_pretrained(folder)
        saved = sum(path.stat().st_size for path in Path(folder).iterdir())
        found = _alone("--open", folder)
    return {
        "N": stored,
        "pages": needed,
        "pages_made": made,
        "memory_bytes_made": made * PAGE_BYTES,
        "memory_bytes": needed * PAGE_BYTES,
        "store_bytes": memoir.layer.store.nbytes,
        "saved_bytes": saved,
        **found,
    }


def _masks(stored: int, memoir: Memoir) -> torch.Tensor:
    """Masks with k bits each, 256 different ones."""
    own, _ = memoir.layer.hash(torch.randn(min(stored, 256), 1, SMOLLM.width))
    return own.repeat(-(-stored // len(own)), 1)[:stored]


def opened(folder: str) -> dict[str, Any]:
    """Opens a memory in this process, and searches it."""
    torch.manual_seed(0)
    model, tokenizer = tiny_memoir(SMOLLM).detach(), bare_tokenizer()
    before = _resident("VmRSS")
    _reset_peak()
    started = time.process_time()
    memoir = Memoir.from_pretrained(model, tokenizer, folder, check=False)
    seconds, peak = time.process_time() - started, _resident("VmHWM") - before
    query, taken = masks(1, SMOLLM), []
    for _ in range(21):
        started = time.process_time()
        memoir.layer.store.match(query)
        taken.append(time.process_time() - started)
    return {"open_seconds": seconds, "open_peak_bytes": peak, "search_seconds": median(taken[1:])}


def growing(rows: int) -> dict[str, Any]:
    """Seconds and bytes of a store that grows in this process to so many masks of LLaMA-3-8B's size."""
    store, some, slowest = MaskStore(LLAMA.width, LLAMA.k), masks(_STEP, LLAMA), 0.0
    before = _resident("VmRSS")
    _reset_peak()
    started = time.process_time()
    for _ in range(rows // _STEP):
        began = time.process_time()
        store.extend(some)
        slowest = max(slowest, time.process_time() - began)
    return {
        "N": rows,
        "rows_bytes": 4 * LLAMA.words * rows,
        "grow_seconds": time.process_time() - started,
        "grow_slowest_seconds": slowest,
        "grow_peak_bytes": _resident("VmHWM") - before,
    }


def _alone(*arguments: str) -> Any:
    """What this file prints in a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-300:]}")
    return json.loads(done.stdout)


def _resident(name: str) -> int:
    """Bytes that are said of this process: `VmRSS`, what is resident now, or `VmHWM`, its peak."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


class Paged(Variants):
    """A model without a memory, and with one of each of some numbers of pages, which the prompt matches or does not."""

    def __init__(self, model: Any, tokenizer: Any, stored: int, pages: tuple[int, ...], tokens: torch.Tensor) -> None:
        self.models, self.memoirs = {"unedited": model}, {}
        for made in pages:
            for name in _NAMES:
                memoir = Memoir.attach(sharing(model), tokenizer, MemoirConfig(routing="paper"))
                self._fill(memoir, stored)
                spread(memoir, stored, made)
                case = _case(name, made)
                self.models[case], self.memoirs[case] = memoir.model, memoir
                if name == "matched":
                    self._store_mask_of(memoir, tokens)
                    memoir.layer.store.page[stored] = made - 1


def _case(name: str, made: int) -> str:
    return f"{name}, {made} page{'s' if made > 1 else ''}"


def decoding(model: Any, tokenizer: Any, stored: int, pages: tuple[int, ...], rounds: int) -> dict[str, Any]:
    """Tokens per second of all variants, which take turns token by token, and their share of the unedited model's."""
    tokens = torch.randint(1000, 10_000, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    variants = Paged(model, tokenizer, stored, pages, tokens)
    samples: measure.Samples = {name: [] for name in variants.models}
    for turn in range(rounds + 1):
        taken = decode(variants, tokens, STEPS, lambda: None, time.process_time)
        variants.require_routes(stored)
        for name in samples if turn else ():
            samples[name] += taken[name]
    for memoir in variants.memoirs.values():
        memoir.detach()
    found = {
        name: {
            "tokens_per_second": 1 / median(taken),
            "over_unedited": measure.ratio(samples, "unedited", name),
            "seconds": vars(measure.spread(taken)),
        }
        for name, taken in samples.items()
    }
    return {
        "N": stored,
        "pages": pages_for(stored),
        "decode": found,
        "pages_beside_another": {
            name: measure.ratio(samples, *(_case(name, made) for made in pages)) for name in _NAMES if len(pages) == 2
        },
    }


def rows(settings: Settings, _: object) -> Iterator[dict[str, Any]]:
    """Opening, decoding and growing, by the number of edits; then one page beside many."""
    sizes = STORED[:1] if settings.quick else STORED
    row = {"bench": "pages", "parameters": SMOLLM.sizes}
    for stored in sizes:
        yield row | {"case": f"opening, N={stored:,}", "figures": opening(stored)}
    yield row | {
        "case": f"growing, N={sizes[-1]:,}",
        "parameters": LLAMA.sizes,
        "figures": _alone("--grow", str(sizes[-1])),
    }
    try:
        model, tokenizer = load_model("smollm2", "float32", "cpu")
    except MemoirError as error:
        yield row | {"case": "decoding", "absent": str(error)}
        return
    for stored in sizes:
        made = min(pages_for(stored), MANY_PAGES)
        yield row | {"case": f"decoding, N={stored:,}", "figures": decoding(model, tokenizer, stored, (made,), 1)}
    stored = MANY_PAGES * PER_PAGE
    figures = decoding(model, tokenizer, stored, (1, MANY_PAGES), 1 if settings.quick else 4)
    yield row | {"case": f"one page beside {MANY_PAGES}", "figures": figures}


def gist(figures: dict[str, Any]) -> str:
    """One line: numbers, and tokens per second of each variant."""
    speeds = {f"{name}:": seen["tokens_per_second"] for name, seen in figures.get("decode", {}).items()}
    plain = {name: value for name, value in figures.items() if isinstance(value, (int, float))}
    return ", ".join(f"{name} {value:.4g}" for name, value in {**plain, **speeds}.items())


BENCHMARK = Benchmark(
    "pages",
    (*bench_layer.SOURCES, "memoir_fast/hf/*.py", "memoir_fast/io/*.py", "memoir_fast/core/*.py"),
    rows=rows,
    most_seconds=400.0,
    gist=gist,
)


def main() -> None:
    """Prints what is measured in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--open", metavar="FOLDER", help="a memory that `opening` saved")
    what.add_argument("--grow", type=int, metavar="ROWS", help="masks that a store shall hold")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(opened(asked.open) if asked.open else growing(asked.grow)))


if __name__ == "__main__":
    main()
