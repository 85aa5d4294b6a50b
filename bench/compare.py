"""Compares two result files and fails where the later one is slower.

    python bench/compare.py BEFORE.json AFTER.json [--threshold 0.15] [--by peers|time]

`time` compares each row's median seconds, for two runs on one quiet machine. `peers` compares each row's ratios to
its peers, the median over those that both runs have: what else a machine does then cancels out.
Exit code 0: nothing is slower by more than the threshold; 1: something is, or gave a wrong result, or is gone; 2: the
files cannot be compared.
"""

import argparse
import json
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple


class Change(NamedTuple):
    """One row in both files: `factor` is its time after, divided by its time before."""

    name: str
    factor: float | None
    problem: str | None


def read(path: Path) -> dict[str, Any]:
    """A result file. ValueError where it is none."""
    figures = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(figures, dict) or "rows" not in figures or "machine" not in figures:
        raise ValueError(f"{path} is no result file of bench/run.py")
    return figures


def changes(before: dict[str, Any], after: dict[str, Any], by: str) -> list[Change]:
    """Every timed row of `before`, with what became of it."""
    found = []
    later = {_name(row): row for row in after["rows"]}
    for row in before["rows"]:
        if "seconds" not in row:
            continue
        name, other = _name(row), later.get(_name(row))
        if other is None or "absent" in other:
            found.append(Change(name, None, "is not in the later file" if other is None else other["absent"]))
        elif "failed" in other:
            found.append(Change(name, None, f"wrong result: {other['failed']}"))
        else:
            found.append(Change(name, _by_peers(row, other) if by == "peers" else _by_time(row, other), None))
    return found


def _name(row: dict[str, Any]) -> str:
    return f"{row['bench']}: {row['case']}"


def _by_time(before: dict[str, Any], after: dict[str, Any]) -> float:
    mode = before["headline"] if before["headline"] in after["seconds"] else "cold"
    return after["seconds"][mode]["p50"] / before["seconds"][mode]["p50"]


def _by_peers(before: dict[str, Any], after: dict[str, Any]) -> float:
    """Peers' ratios tell how many times slower they are: where the op slows down, they fall."""
    both = [
        seen["ratio"] / after["peers"][peer]["ratio"]
        for peer, seen in before["peers"].items()
        if "ratio" in seen and "ratio" in after["peers"].get(peer, {})
    ]
    return median(both) if both else _by_time(before, after)


def same_place(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Whether two machines are of one kind."""

    def kind(machine: dict[str, Any]) -> Any:
        gpu = machine["gpu"].get("devices") if machine["device"] == "cuda" else None
        return machine["device"], machine["threads"], gpu or machine["processor"].get("name")

    return kind(before["machine"]) == kind(after["machine"])


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--threshold", type=float, default=0.15, help="tolerated slow-down (default: 0.15)")
    parser.add_argument("--by", choices=("time", "peers"), default="time")
    asked = parser.parse_args(arguments)
    try:
        before, after = read(asked.before), read(asked.after)
    except (OSError, ValueError) as error:
        print(f"compare: {error}")
        return 2
    if not same_place(before, after):
        print("compare: the two runs are from different machines, or with different numbers of threads")
        return 2
    found = changes(before, after, asked.by)
    if not found:
        print("compare: the earlier file has no timed row")
        return 2
    bad = [one for one in found if one.factor is None or one.factor > 1 + asked.threshold]
    for one in sorted(found, key=lambda one: -(one.factor or float("inf"))):
        shown = one.problem if one.factor is None else f"{one.factor:.2f} times the time"
        print(f"{'SLOWER' if one in bad else '      '} {one.name:70} {shown}")
    print(f"{len(bad)} of {len(found)} rows are worse by more than {asked.threshold:.0%}")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
