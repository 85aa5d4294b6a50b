"""All benchmarks by one command: checks, times, peers, a result file and a short table last.

    python bench/run.py [--only NAME]... [--quick] [--gpu] [--json FILE] [--limit SECONDS] [--threads 1]

NAME is one of those that --list prints. Without --json the figures of a whole run go to bench/results/cpu-<date>.json.
The file is written after every benchmark, so that a run that is cut off leaves what it has. Exit code 1 where a result
was wrong.
"""

import argparse
import datetime
import importlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import measure
import torch
from cases import Settings, blank, rows_of
from summary import table

# In this order: what a run that is cut off must have comes first.
BENCHES = (
    "mask_match",
    "tophash",
    "masked_linear",
    "layer",
    "generate",
    "edit",
    "prompt_feature",
    "mask_overlap",
    "memory_update",
    "scaling",
)
RESULTS = Path(__file__).parent / "results"
FORMAT = 1


def rows(name: str, settings: Settings, timer: measure.Timer, until: float) -> Iterator[dict[str, Any]]:
    """The rows of one benchmark; those whose turn comes after `until` (of time.monotonic) say that time was up."""
    module = importlib.import_module(f"bench_{name}")
    if hasattr(module, "rows"):
        if time.monotonic() < until:
            yield from module.rows(settings, timer)
        else:
            yield {"bench": name, "case": "all", "parameters": {}, "absent": "the time limit of the run was reached"}
        return
    for case in module.cases(settings):
        if time.monotonic() < until:
            yield from rows_of([case], settings, timer)
        else:
            yield blank(case, absent="the time limit of the run was reached")


def write(path: Path | None, figures: dict[str, Any]) -> None:
    """Replaces the result file."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".tmp")
        beside.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        beside.replace(path)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=BENCHES, metavar="NAME", help="may be given several times")
    parser.add_argument("--quick", action="store_true", help="one small case of each, to see that they work")
    parser.add_argument("--gpu", action="store_true", help="measure the CUDA device instead of the CPU")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the figures go")
    parser.add_argument("--limit", type=float, default=540, help="start no case after so many seconds (default: 540)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads on the CPU (default: 1)")
    parser.add_argument("--list", action="store_true", help="print the names and end")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    asked = parse(arguments)
    if asked.list:
        print("\n".join(BENCHES))
        return 0
    if asked.gpu and not torch.cuda.is_available():
        print("bench/run.py --gpu needs a CUDA device; torch sees none", file=sys.stderr)
        return 2
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    settings = Settings(
        device="cuda" if asked.gpu else "cpu",
        quick=asked.quick,
        compile=not asked.quick,
        seconds=0.02 if asked.quick else 0.06 if asked.gpu else 0.15,
    )
    until = time.monotonic() + asked.limit
    timer = measure.timer_for(settings.device)
    figures: dict[str, Any] = {"format": FORMAT, "quick": asked.quick, "machine": measure.machine(timer), "rows": []}
    path = asked.json or (None if asked.quick or asked.only else RESULTS / default_name(figures["machine"]))
    started = time.monotonic()
    for name in [name for name in BENCHES if not asked.only or name in asked.only]:
        for row in rows(name, settings, timer, until):
            figures["rows"].append(row)
            print(f"{time.monotonic() - started:5.0f} s  {row['bench']}: {row['case']}", file=sys.stderr, flush=True)
        write(path, figures)
    figures["seconds"] = round(time.monotonic() - started, 1)
    write(path, figures)
    print(table(figures))
    if path is not None:
        print(f"figures: {path}")
    return 1 if any("failed" in row for row in figures["rows"]) else 0


def default_name(machine: dict[str, Any]) -> str:
    """`cpu-2026-01-31.json`, or the GPU's name with a date."""
    date = datetime.date.today().isoformat()
    if machine["device"] == "cpu":
        return f"cpu-{date}.json"
    return f"{machine['gpu']['devices'][0]['name'].replace(' ', '-')}-{date}.json"


if __name__ == "__main__":
    raise SystemExit(main())
