"""All benchmarks by one command: checks, times, peers, a result file and a short table last.

    python bench/run.py [--only NAME]... [--quick] [--gpu] [--json FILE] [--limit SECONDS] [--threads 1]
        [--pin] [--apart]

NAME is one of those that --list prints. Without --json the figures of a whole run go to bench/results/cpu-<date>.json.
After every row what there is goes to FILE.part, which takes FILE's place at the end: a run that is cut off leaves
its part, and never a half one where the tables look. Exit code 1 where a result was wrong. With --apart, which
--gpu implies, every benchmark has a process of its own.
"""

import argparse
import datetime
import gc
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import isolated
import measure
import torch
from benchmark import Benchmark
from benchmarks import NAMED, ON_CPU, ON_GPU
from cases import Settings, blank, rows_of
from sources import today
from summary import report

RESULTS = Path(__file__).parent / "results"
FORMAT = 1


def rows(benchmark: Benchmark, settings: Settings, timer: measure.Timer, until: float) -> Iterator[dict[str, Any]]:
    """The rows of one benchmark; those whose turn comes after `until` (of time.monotonic) say that time was up."""
    late = {"absent": "the time limit of the run was reached"}
    for case in benchmark.cases(settings):
        yield from rows_of([case], settings, timer) if time.monotonic() < until else [blank(case, **late)]
    if benchmark.rows:
        yield from _until(benchmark.name, benchmark.rows(settings, timer), until, late)


def _until(name: str, found: Iterator[dict[str, Any]], until: float, late: dict[str, str]) -> Iterator[dict[str, Any]]:
    """The rows for which there is time; the last one says that others were left out, or what they broke down with."""
    rest = {"bench": name, "case": "the rest", "parameters": {}}
    while time.monotonic() < until:
        try:
            row = next(found, None)
        except Exception as error:  # a driver of many benchmarks: one that breaks becomes a failed row
            yield rest | {"failed": f"{type(error).__name__}: {error}"[:300]}
            return
        if row is None:
            return
        yield row
    yield rest | late


def with_seconds(found: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows, each with the wall-clock seconds that it took, peers, checks and preparation included."""
    before = time.monotonic()
    for row in found:
        yield row | {"row_seconds": round(time.monotonic() - before, 2)}
        before = time.monotonic()


def write(path: Path | None, figures: dict[str, Any], finished: bool = False) -> None:
    """Puts the figures beside `path`, and in its place once the run is finished."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        part.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        if finished:
            part.replace(path)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=NAMED, metavar="NAME", help="may be given several times")
    parser.add_argument("--quick", action="store_true", help="one small case of each, to see that they work")
    parser.add_argument("--gpu", action="store_true", help="measure the CUDA device instead of the CPU")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the figures go")
    parser.add_argument("--limit", type=float, default=520, help="start no case after so many seconds (default: 520)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads on the CPU (default: 1)")
    parser.add_argument("--pin", action="store_true", help="stay on one core, the last that may be used")
    parser.add_argument("--apart", action="store_true", help="a process for each benchmark; implied by --gpu")
    parser.add_argument("--wait", action="store_true", help=argparse.SUPPRESS)  # a process of --apart
    parser.add_argument("--list", action="store_true", help="print the names and end")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    asked = parse(arguments)
    if asked.list:
        print("\n".join(NAMED))
        return 0
    if asked.gpu and not torch.cuda.is_available():
        print("bench/run.py --gpu needs a CUDA device; torch sees none", file=sys.stderr)
        return 2
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(asked.threads)
    if asked.pin:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.manual_seed(0)
    settings = Settings(
        device="cuda" if asked.gpu else "cpu",
        quick=asked.quick,
        compile=not asked.quick,
        seconds=0.02 if asked.quick else 0.06 if asked.gpu else 0.1,
    )
    if asked.gpu:
        torch.cuda.init()
    if asked.wait:
        asked.limit = isolated.wait_for_word()
    until = time.monotonic() + asked.limit
    apart = (asked.apart or asked.gpu) and not asked.wait
    timer = measure.timer_for(settings.device)
    figures: dict[str, Any] = {
        "format": FORMAT,
        "quick": asked.quick,
        "only": asked.only or [],
        "machine": {} if asked.wait else measure.machine(timer),
        "rows": [],
    }
    path = asked.json or (None if asked.quick or asked.only else RESULTS / default_name(figures["machine"]))
    started = time.monotonic()
    wanted = [one for one in (ON_GPU if asked.gpu else ON_CPU) if not asked.only or one.name in asked.only]

    def kept(running: list[dict[str, Any]]) -> None:
        write(path, figures | {"rows": figures["rows"] + running})

    if apart:
        del timer  # its buffers are the processes' to use
        gc.collect()
        command = [sys.executable, str(Path(__file__).resolve()), *_options(asked)]
        found = isolated.rows_of_each({one.name: one.most_seconds for one in wanted}, command, asked.limit, kept)
    else:
        found = (row for one in wanted for row in with_seconds(rows(one, settings, timer, until)))
    for row in found:
        figures["rows"].append(row | {"sources": today(row["bench"], settings.device)})
        taken, total = row["row_seconds"], time.monotonic() - started
        kept([])
        print(f"{total:5.0f} s {taken:+6.1f}  {row['bench']}: {row['case']}", file=sys.stderr, flush=True)
    figures["seconds"] = round(time.monotonic() - started, 1)
    write(path, figures, finished=True)
    if asked.wait:
        return int(any("failed" in row for row in figures["rows"]))
    print(report(figures))
    if path is not None:
        print(f"figures: {path}")
    return 1 if any("failed" in row for row in figures["rows"]) else 0


def _options(asked: argparse.Namespace) -> list[str]:
    """What the process of one benchmark is told beside its name."""
    flags = [f"--{name}" for name in ("quick", "gpu", "pin") if getattr(asked, name)]
    return [*flags, "--threads", str(asked.threads)]


def default_name(machine: dict[str, Any]) -> str:
    """`cpu-2026-01-31.json`, or the GPU's name with a date."""
    date = datetime.date.today().isoformat()
    if machine["device"] == "cpu":
        return f"cpu-{date}.json"
    return f"{machine['gpu']['devices'][0]['name'].replace(' ', '-')}-{date}.json"


if __name__ == "__main__":
    raise SystemExit(main())
