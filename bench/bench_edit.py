"""Speed of learning: the published loop, the fast recipe one edit at a time, and the fast recipe in batches.

    python bench/bench_edit.py [--json FILE] [--edits 16] [--paper-edits 4] [--batch 8] [--threads 1]

The packaged SmolLM2-135M in float32 on the CPU learns the package's own facts, each procedure into a memory of its
own over the same weights. The procedures take turns, the same prompts in each, so that a busy machine slows all of
them; ratios compare seconds per edit on the prompts that the published loop was given too.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from statistics import mean
from typing import Any

import torch
from benchmark import Benchmark, told
from cases import Settings
from models import sharing

from memoir_fast import Memoir
from memoir_fast.core.scoring import locality, target_accuracy
from memoir_fast.errors import MemoirError
from memoir_fast.hf.loading import load_model
from memoir_fast.io.facts import Fact, facts, unrelated

WANTED = {"fast": 10.0, "batch": 15.0}


def scores(memoir: Memoir, taught: Sequence[Fact], asides: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Reliability, generalization and locality after all edits, teacher-forced."""
    return {
        "rel": mean(target_accuracy(memoir, [(fact.prompt, fact.target) for fact in taught])),
        "gen": mean(target_accuracy(memoir, [(text, fact.target) for fact in taught for text in fact.paraphrases])),
        "loc": mean(locality(memoir, asides)),
    }


def seconds_of(memoir: Memoir, taught: Sequence[Fact], **how: Any) -> float:
    """Teaches the facts; seconds per edit, hashing and writing included."""
    results = memoir.edit([(fact.prompt, fact.target) for fact in taught], progress=False, **how)
    return mean(result.seconds for result in results)


def measure_edits(edits: int, paper_edits: int, batch: int, asides: int, say: Any = lambda *_: None) -> dict[str, Any]:
    """All figures of this benchmark.

    Args:
        edits (int): facts taught by the fast recipe; a multiple of `batch`.
        paper_edits (int): how many of them, the first, the published loop is given: its seconds, and its scores.
        batch (int): edits learned together.
        asides (int): unrelated prompts for locality.
    """
    known, others = facts()[:edits], unrelated()[:asides]
    model, tokenizer = load_model("smollm2", "float32", "cpu")
    model.requires_grad_(False)
    memoirs = {name: Memoir.attach(sharing(model), tokenizer) for name in ("paper", "fast", "batch")}
    for memoir in memoirs.values():  # written once per memory: no part of an edit
        memoir.prefixes = memoirs["paper"]._first_prefixes(10)
    warm = Memoir.attach(sharing(model), tokenizer)
    warm.prefixes = memoirs["paper"].prefixes
    seconds_of(warm, known[:batch], batch=batch)
    seconds: dict[str, list[float]] = {name: [] for name in memoirs}
    for start in range(0, edits, batch):
        part = known[start : start + batch]
        seconds["batch"] += [seconds_of(memoirs["batch"], part, batch=batch)] * len(part)
        for index, fact in enumerate(part, start):
            seconds["fast"].append(seconds_of(memoirs["fast"], [fact]))
            if index < paper_edits:
                seconds["paper"].append(seconds_of(memoirs["paper"], [fact], recipe="paper"))
                say(f"edit {index}: paper {seconds['paper'][-1]:.1f} s, fast {seconds['fast'][-1]:.2f} s")
    per_edit = {name: mean(taken) for name, taken in seconds.items()}
    found: dict[str, Any] = {
        "paper_seconds": per_edit["paper"],
        "fast_seconds": per_edit["fast"],
        "batch_seconds": per_edit["batch"],
        "fast_speedup": per_edit["paper"] / mean(seconds["fast"][:paper_edits]),
        "batch_speedup": per_edit["paper"] / mean(seconds["batch"][: max(batch, paper_edits)]),
        "batch_over_fast": per_edit["fast"] / per_edit["batch"],
        "edits": {"paper": paper_edits, "fast": edits, "batch": edits},
        "batch_size": batch,
        "threads": torch.get_num_threads(),
        "unrelated": asides,
    }
    for name, memoir in memoirs.items():
        taught = known[: found["edits"][name]]
        found[name] = scores(memoir, taught, others)
    found["fast_on_paper_edits"] = scores(memoirs["fast"], known[:paper_edits], others)
    return found


def rows(settings: Settings, _: object) -> Iterator[dict[str, Any]]:
    """One row for the driver; a quick run teaches two facts."""
    numbers = {"model": "SmolLM2-135M", "dtype": "float32", "device": "cpu"}
    name = "SmolLM2-135M, one fact"
    if settings.device != "cpu":
        yield {"bench": "edit", "case": name, "parameters": numbers, "absent": "is measured on the CPU"}
        return
    try:
        found = measure_edits(2, 1, 2, 4) if settings.quick else measure_edits(8, 2, 8, 16)
    except MemoirError as error:
        yield {"bench": "edit", "case": name, "parameters": numbers, "absent": str(error)}
        return
    targets = [
        {"what": f"{kind}: times the published loop's speed", "value": found[f"{kind}_speedup"], "least": least}
        for kind, least in WANTED.items()
    ]
    yield {"bench": "edit", "case": name, "parameters": numbers, "figures": found, "targets": targets}


def summary(figures: dict[str, Any]) -> str:
    """One line: seconds per edit of each procedure."""
    return ", ".join(f"{kind} {figures[f'{kind}_seconds']:.2f} s per edit" for kind in ("paper", "fast", "batch"))


BENCHMARK = Benchmark("edit", ("memoir_fast/editing/*.py", "memoir_fast/hf/*.py"), rows=rows, gist=summary)


def main() -> None:
    """Prints the figures, and writes them where --json says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--edits", type=int, default=16, help="facts for the fast recipe (default: 16)")
    parser.add_argument("--paper-edits", type=int, default=4, help="of those, for the published loop (default: 4)")
    parser.add_argument("--batch", type=int, default=8, help="edits learned together (default: 8)")
    parser.add_argument("--asides", type=int, default=48, help="unrelated prompts for locality (default: 48)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    asked = parser.parse_args()
    if not 1 <= asked.paper_edits <= asked.edits <= len(facts()) or asked.edits % asked.batch:
        parser.error(f"1 <= paper-edits <= edits <= {len(facts())} must hold, and edits be a multiple of batch")
    torch.set_num_threads(asked.threads)
    found = measure_edits(
        asked.edits, asked.paper_edits, asked.batch, asked.asides, lambda line: print(line, file=sys.stderr, flush=True)
    )
    told(found, asked.json)


if __name__ == "__main__":
    main()
