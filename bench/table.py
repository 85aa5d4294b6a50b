"""Figures as tables, one number per cell: a short table in the README, all in docs/performance.md and in GROWTH.md.

    python bench/table.py [--check]

Run it after a run, and commit what changed. For each device the newest whole run in bench/results/ counts; what that
lacks is "not measured". A figure of kernels that have changed since has a mark in the README, and says so elsewhere.
--check writes nothing and exits with 1 where a page differs.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import ON_CPU
from growth import page
from sources import files, is_old
from summary import place, share_of, source, time_of

ROOT = Path(__file__).resolve().parent.parent
README, PERFORMANCE = ROOT / "README.md", ROOT / "docs" / "performance.md"
GROWTH, RESULTS = ROOT / "bench" / "GROWTH.md", ROOT / "bench" / "results"
BEGIN, END = "<!-- bench/table.py: begin -->", "<!-- bench/table.py: end -->"
NOT_MEASURED = "not measured"
OLDER, TODAYS, UNTOLD = "older than the kernel", "today's", "-"
MARK = " \\*"

Row = dict[str, Any]
Runs = dict[str, tuple[str, dict[str, Any]]]

# What is said of an op: a name, and the benchmark and the case that it is measured by.
OPS = tuple((label, one.name, case) for one in ON_CPU for label, case in one.listed)
# The README's rows: in words, and the name in OPS; or what a target of a whole model is about.
HEADLINE_TIMES = tuple(row for one in ON_CPU for row in one.headlines)
HEADLINE_SHARES = (
    ("decode, 7,000 edits stored, none followed: share of the unedited speed", "decode, unmatched, share of unedited"),
    ("decode, 7,000 edits stored, one followed: share of the unedited speed", "decode, matched, share of unedited"),
)
HEADLINE_RATIOS = (("one fact learned: times the published loop's speed", "fast: times the published loop's speed"),)


def newest(results: Path = RESULTS) -> Runs:
    """Per device, `cpu` first, file name and figures of the newest whole run, neither quick nor of a part."""
    runs: Runs = {}
    for path in sorted(results.glob("*.json")):
        figures = json.loads(path.read_text(encoding="utf-8"))
        if "machine" not in figures or "rows" not in figures or figures.get("quick") or figures.get("only"):
            continue
        device = "cpu" if figures["machine"]["device"] == "cpu" else place(figures["machine"])
        if device not in runs or figures["machine"]["date"] >= runs[device][1]["machine"]["date"]:
            runs[device] = path.name, figures
    return dict(sorted(runs.items(), key=lambda run: (run[0] != "cpu", run[0])))


def newest_with_pages(results: Path = RESULTS) -> tuple[str, dict[str, Any]] | None:
    """File name and figures of the newest run that has rows of `bench_pages`, be it a run of it alone; None: no run."""
    found = [(path.name, json.loads(path.read_text(encoding="utf-8"))) for path in sorted(results.glob("*.json"))]
    paged = [one for one in found if any(row["bench"] == "pages" for row in one[1].get("rows", ()))]
    whole = [one for one in paged if not one[1].get("quick")]
    return max(whole, key=lambda one: one[1]["machine"]["date"], default=None)


def headline(runs: Runs) -> str:
    """What stands between the README's markers: the CPU and every GPU, a few rows."""
    devices = [*(["cpu"] if "cpu" not in runs else []), *runs, *([] if set(runs) - {"cpu"} else ["GPU"])]
    lines = [
        _line("", *(_processor(runs) if device == "cpu" else device for device in devices)),
        _line(*["---"] * (len(devices) + 1)),
    ]
    for words, name in HEADLINE_TIMES:
        lines.append(_line(words, *(_marked(runs, device, _timed, name, _time) for device in devices)))
    for rows, show in ((HEADLINE_SHARES, _share), (HEADLINE_RATIOS, _ratio)):
        for words, what in rows:
            lines.append(_line(words, *(_marked(runs, device, _target, what, show) for device in devices)))
    marked = any(MARK in line for line in lines)
    return "\n".join([*lines, "", "\\* of kernels that have changed since."] if marked else lines)


def section(runs: Runs) -> str:
    """What stands between the markers of docs/performance.md: every device with its times, peers and targets."""
    parts = []
    for device, (name, figures) in runs.items():
        title = f"CPU: {place(figures['machine'])}" if device == "cpu" else device
        parts += [f"## {title}", " ".join([source(name, figures["machine"], "../bench/results"), *_note(figures)])]
        parts += ["### Time of one call", _times(figures), "### Beside others", _peers(figures)]
        parts += ["### Whole models", _targets(figures)]
    return "\n\n".join(parts or ["No result file is in bench/results yet."])


def _times(figures: dict[str, Any]) -> str:
    """One row per op and case."""
    lines = [_line("", "cold", "again and again", "share of the bandwidth", "kernel"), _line(*["---"] * 5)]
    for label, _, _ in OPS:
        row = _timed(figures, label)
        if row is None:
            lines.append(_line(label, NOT_MEASURED, "", "", ""))
            continue
        hot = row["seconds"].get(row["headline"].replace("cold", "hot"))
        again = time_of(hot["p50"]) if hot and row["headline"] != "hot" else "-"
        lines.append(_line(label, _time(row), again, share_of(row, "ceiling not trusted"), _age(row, figures)))
    return "\n".join(lines)


def _peers(figures: dict[str, Any]) -> str:
    """One row per case and peer."""
    lines = [_line("", "beside", "times as long", "the same result"), _line(*["---"] * 4)]
    for label, _, _ in OPS:
        for peer, seen in ((_timed(figures, label) or {}).get("peers") or {}).items():
            if "ratio" in seen:
                lines.append(_line(label, peer, f"{seen['ratio']:.3g}", "yes" if seen.get("same", True) else "no"))
    return "\n".join(lines) if len(lines) > 2 else "No peer was measured."


def _targets(figures: dict[str, Any]) -> str:
    """One row per target of a whole model."""
    lines = [_line("", "figure", "target", "reached", "kernel"), _line(*["---"] * 5)]
    for row in figures["rows"]:
        for target in row.get("targets", ()):
            at_least = "least" in target
            bound, unit = (target["least"], "x") if at_least else (target["most"], "")
            reached = target["value"] >= bound if at_least else target["value"] <= bound
            wanted = f"{'>=' if at_least else '<='} {bound}{unit}"
            shown = f"{target['value']:.3g}{unit}", wanted, "yes" if reached else "no", _age(row, figures)
            lines.append(_line(f"{row['case']}: {target['what']}", *shown))
    return "\n".join(lines) if len(lines) > 2 else "Whole models were not measured in this run."


def _timed(figures: dict[str, Any], label: str) -> Row | None:
    """The row of a name in OPS, where it has a time."""
    bench, case = next((bench, case) for name, bench, case in OPS if name == label)
    named = (row for row in figures["rows"] if (row["bench"], row["case"]) == (bench, case))
    return next((row for row in named if "seconds" in row), None)


def _target(figures: dict[str, Any], what: str) -> Row | None:
    """The row with a target about `what`, and the value of that."""
    found: Iterator[Row] = (
        {**row, "value": target["value"]}
        for row in figures["rows"]
        for target in row.get("targets", ())
        if target["what"] == what
    )
    return next(found, None)


def _marked(runs: Runs, device: str, find: Callable[..., Row | None], name: str, show: Callable[[Row], str]) -> str:
    """A cell of the README: one number, with a mark where it is of older kernels."""
    figures = runs[device][1] if device in runs else None
    row = find(figures, name) if figures else None
    if row is None or figures is None:
        return NOT_MEASURED
    return show(row) + (MARK if _age(row, figures) == OLDER else "")


def _processor(runs: Runs) -> str:
    """The CPU's column: its name and how many threads ran."""
    if "cpu" not in runs:
        return "CPU"
    machine = runs["cpu"][1]["machine"]
    return f"{place(machine)}, {machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"


def _time(row: Row) -> str:
    return time_of(row["seconds"][row["headline"]]["p50"])


def _share(row: Row) -> str:
    return f"{row['value']:.1%}"


def _ratio(row: Row) -> str:
    return f"{row['value']:.3g}"


def _age(row: Row, figures: dict[str, Any]) -> str:
    """Whether the kernels are still those that were measured; of some benchmarks no files are noted."""
    if row.get("sources") is None and not files(row["bench"], figures["machine"]["device"]):
        return UNTOLD
    return OLDER if is_old(row, figures["machine"]["device"]) else TODAYS


def _note(figures: dict[str, Any]) -> list[str]:
    return [figures["note"]] if figures.get("note") else []


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def rewritten(text: str, inside: str) -> str:
    """A page with what lies between its markers replaced. ValueError where it has none."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page lacks {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{inside}\n{END}{after}"


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    asked = parser.parse_args(arguments)
    runs = newest()
    wanted = {
        README: rewritten(README.read_text(encoding="utf-8"), headline(runs)),
        PERFORMANCE: rewritten(PERFORMANCE.read_text(encoding="utf-8"), section(runs)),
        GROWTH: page(runs, newest_with_pages()),
    }
    changed = [path for path, text in wanted.items() if not path.is_file() or path.read_text("utf-8") != text]
    if asked.check:
        for path in changed:
            print(f"{path.name} is out of date: python bench/table.py")
        return int(bool(changed))
    for path in changed:
        path.write_text(wanted[path], encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
