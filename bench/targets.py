"""What the engine has to reach, and whether a result file says that it does.

    python bench/targets.py RESULT.json [--strict]

A target that the file has no figure for is "not measured". --strict exits with 1 where one that was measured is missed.
GPU times are a graph's replays over inputs that are not in the cache. CPU ratios are those of calls in a row: cold, a
call from Python costs more than these ops do.
"""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

from benchmark import Benchmark, Target
from benchmarks import ON_CPU, ON_GPU


class Verdict(NamedTuple):
    """A target beside what was measured."""

    what: str
    value: float | None
    bound: float
    at_least: bool

    @property
    def word(self) -> str:
        """`reached`, `MISSED` or `not measured`."""
        if self.value is None:
            return "not measured"
        return "reached" if (self.value >= self.bound if self.at_least else self.value <= self.bound) else "MISSED"

    def __str__(self) -> str:
        shown = "" if self.value is None else f" {self.value:.3g}"
        return f"{self.word:12} {self.what}:{shown} (wanted {'>=' if self.at_least else '<='} {self.bound:.3g})"


def targets(device: str) -> list[tuple[Benchmark, Target]]:
    """Every target of a device, `cpu` or `cuda`, with the benchmark that it is of."""
    if device == "cpu":
        return [(benchmark, target) for benchmark in ON_CPU for target in benchmark.cpu_targets]
    return [(benchmark, target) for benchmark in ON_GPU for target in benchmark.gpu_targets]


def verdicts(figures: dict[str, Any]) -> list[Verdict]:
    """Every target of the file's device, and those that rows bring along."""
    rows = {(row["bench"], row["case"]): row for row in figures["rows"]}
    found = []
    for benchmark, target in targets(figures["machine"]["device"]):
        row = rows.get((benchmark.name, target.case), {})
        try:
            value = target.figure(row)
        except KeyError:
            value = None
        found.append(Verdict(f"{benchmark.name}, {target.case}: {target.what}", value, target.bound, target.at_least))
    for row in figures["rows"]:
        found += [
            Verdict(f"{row['bench']}, {row['case']}: {target['what']}", target["value"], bound, "least" in target)
            for target in row.get("targets", ())
            for bound in (target["least"] if "least" in target else target["most"],)
        ]
    return found


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("result", type=Path)
    parser.add_argument("--strict", action="store_true")
    asked = parser.parse_args(arguments)
    found = verdicts(json.loads(asked.result.read_text(encoding="utf-8")))
    print("\n".join(map(str, found)))
    return int(asked.strict and any(verdict.word == "MISSED" for verdict in found))


if __name__ == "__main__":
    raise SystemExit(main())
