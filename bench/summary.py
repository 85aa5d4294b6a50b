"""What a run ends with: a table of one line per case, at most 42 lines, the targets, and where the seconds went.

python bench/summary.py RESULT.json
"""

import json
import sys
from pathlib import Path
from typing import Any

from bandwidth import MOST_TRUSTED
from benchmark import gist
from benchmarks import NAMED
from targets import verdicts

MOST_LINES = 40


def table(figures: dict[str, Any]) -> str:
    """Text of a result file."""
    machine = figures["machine"]
    ceilings = machine["ceilings"]
    head = [
        f"{place(machine)}, {machine['threads']} thread(s), commit {machine['commit']}, {machine['date']}; "
        f"read {ceilings['read_bytes_per_second'] / 1e9:.1f} GB/s, copy {ceilings['copy_bytes_per_second'] / 1e9:.1f}",
        f"{'benchmark: case':64} {'p50':>9} {'p20':>9} {'p80':>9} {'GB/s':>7} {'ceil.':>6} {'/floor':>6}  times slower",
    ]
    body = [line for row in figures["rows"] for line in lines(row)]
    if len(body) > MOST_LINES:
        body = [*body[: MOST_LINES - 1], f"... {len(body) - MOST_LINES + 1} more lines in the result file"]
    return "\n".join(head + body)


def report(figures: dict[str, Any]) -> str:
    """All that is printed. Targets of what was not asked for are left out."""
    whole = not figures.get("only") and not figures["quick"]
    judged = [str(verdict) for verdict in verdicts(figures) if whole or verdict.value is not None]
    return "\n".join([table(figures), *judged, spent(figures)])


def spent(figures: dict[str, Any]) -> str:
    """One line: the seconds of every benchmark, and of all."""
    of: dict[str, float] = {}
    for row in figures["rows"]:
        of[row["bench"]] = of.get(row["bench"], 0.0) + row["row_seconds"]
    total = figures.get("seconds", sum(of.values()))  # a run that was cut off did not get to say
    return f"{total:.0f} s: " + ", ".join(f"{name} {seconds:.0f}" for name, seconds in of.items())


def place(machine: dict[str, Any]) -> str:
    """The device's name."""
    if machine["device"] == "cpu":
        return machine["processor"].get("name", "CPU")
    return machine["gpu"]["devices"][0]["name"]


def source(name: str, machine: dict[str, Any], folder: str = "bench/results") -> str:
    """A line of Markdown: what a result file was measured on, and a link to it."""
    threads = ""
    if machine["device"] == "cpu":
        processor = machine["processor"]
        load, cores = machine["load"], processor.get("cores", "?")
        kind = f", family {processor['family']}, model {processor['model']}" if processor.get("family") else ""
        threads = f"{kind}, {machine['threads']} thread(s), load {load} on {cores} cores when it began"
    return (
        f"{place(machine)}{threads}, torch {machine['packages']['torch']}, {machine['date']}: "
        f"[bench/results/{name}]({folder}/{name})."
    )


def lines(row: dict[str, Any]) -> list[str]:
    """A row's lines."""
    name = f"{row['bench']}: {row['case']}"[:64]
    for word, shown in (("failed", "WRONG"), ("absent", "not measured")):
        if word in row:
            return [f"{name:64} {shown}: {row[word]}"[:140]]
    if "figures" in row:
        return [f"{name:64} {_gist(row)}"[:200]]
    own = row["seconds"][row["headline"]]
    times = " ".join(f"{time_of(own[at]):>9}" for at in ("p50", "p20", "p80"))
    peers = ", ".join(f"{peer} {seen['ratio']:.3g}" for peer, seen in row["peers"].items() if "ratio" in seen)
    over = f"{row['times_floor']:6.2f}" if row["times_floor"] else f"{'-':>6}"
    rates = f"{row['bytes_per_second'] / 1e9:7.1f} {share_of(row):>6} {over}"
    return [f"{name:64} {times} {rates}  {peers}"]


def _gist(row: dict[str, Any]) -> str:
    """A row's figures in a line; by its benchmark, where that is still one."""
    return (NAMED[row["bench"]].gist if row["bench"] in NAMED else gist)(row["figures"])


def share_of(row: dict[str, Any], untrusted: str = "-") -> str:
    """The share of the ceiling in per cent, or `untrusted` where the ceiling cannot be trusted."""
    share = row["share_of_ceiling"]
    return untrusted if share is None or share > MOST_TRUSTED else f"{share:.0%}"


def time_of(seconds: float) -> str:
    """With a unit that leaves three digits or so."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


if __name__ == "__main__":
    print(report(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
