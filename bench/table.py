"""The README's performance section, and GROWTH.md, made of result files: run it after a run, and commit what changed.

    python bench/table.py [--check]

For each device the newest whole run in bench/results/ counts. A row that it lacks is "not measured"; one of kernels
that have changed since is "older than the kernel". --check writes nothing and exits with 1 where a page differs.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from growth import page
from sources import is_old
from summary import place, share_of, source, time_of

ROOT = Path(__file__).resolve().parent.parent
README, GROWTH, RESULTS = ROOT / "README.md", ROOT / "bench" / "GROWTH.md", ROOT / "bench" / "results"
BEGIN, END = "<!-- bench/table.py: begin -->", "<!-- bench/table.py: end -->"
NOT_MEASURED = "not measured"
OLDER = "older than the kernel"

# What is said of an op: the case's name on the CPU, on a GPU, and the peers it is compared with.
OPS = (
    ("mask_match, 1 query, 7,000 edits", "mask_match", "1 query, N=7,000, D=14336"),
    ("mask_match, 1 query, 100,000 edits", "mask_match", "1 query, N=100,000, D=14336"),
    ("mask_match, 1 query, 1,000,000 edits", "mask_match", "1 query, N=1,000,000, D=14336"),
    ("mask_match, 2,048 queries, 7,000 edits", "mask_match", "2048 queries, N=7,000, D=14336"),
    ("tophash, 1 feature", "tophash", "1 row, D=14336, k=4096"),
    ("tophash, 8,192 features", "tophash", "8192 rows, D=14336, k=4096"),
    ("prompt_feature, 512 tokens, bf16", "prompt_feature", "1 x 512 tokens, D=14336, bfloat16"),
    ("masked_linear, 1 token, bf16", "masked_linear", "1 x 1 token, D=14336, bfloat16"),
    ("masked_linear, 2,048 tokens, bf16", "masked_linear", "1 x 2048 tokens, D=14336, bfloat16"),
    ("layer, 1 token, matched", "layer", "decode, 1 x 1 token, D=14336, N=7,000, matched"),
    ("layer, 1 token, unmatched", "layer", "decode, 1 x 1 token, D=14336, N=7,000, unmatched"),
    ("layer, prefill of 2,048 tokens, matched", "layer", "prefill, 1 x 2048 tokens, D=14336, N=7,000, matched"),
)


Runs = dict[str, tuple[str, dict[str, Any]]]


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


def _row(figures: dict[str, Any], bench: str, case: str) -> dict[str, Any] | None:
    """The row with a time, where there is one."""
    named = (row for row in figures["rows"] if (row["bench"], row["case"]) == (bench, case))
    return next((row for row in named if "seconds" in row), None)


def section(runs: Runs) -> str:
    """The text between the markers."""
    columns = list(runs)
    gpus = [device for device in columns if device != "cpu"]
    head = [*(["CPU"] if "cpu" in runs else []), *gpus, *([] if gpus else ["GPU"])]
    lines = [
        "Time of one call at LLaMA-3-8B's layer (D=14336, O=4096, k=4096) with neither inputs nor code in the cache;",
        "in brackets, called again and again; then the share of the bandwidth that the machine reached meanwhile, and",
        "how many times longer the peers of the same turns take. A peer below 1x is faster.",
        "",
        f"| | {' | '.join(head)} |",
        f"| --- |{' --- |' * len(head)}",
    ]
    for label, bench, case in OPS:
        cells = [_cell(_row(runs[device][1], bench, case), runs[device][1]["machine"]["device"]) for device in columns]
        cells += [NOT_MEASURED] * (len(head) - len(cells))
        lines.append(f"| {label} | {' | '.join(cells)} |")
    lines += ["", *_whole(runs), "", *_sources(runs)]
    return "\n".join(lines)


def _cell(row: dict[str, Any] | None, device: str) -> str:
    if row is None:
        return NOT_MEASURED
    old = f"; {OLDER}" if is_old(row, device) else ""
    peers = [f"{name} {seen['ratio']:.3g}x" for name, seen in row["peers"].items() if "ratio" in seen]
    own, hot = row["seconds"][row["headline"]]["p50"], row["seconds"].get(row["headline"].replace("cold", "hot"))
    again = f" ({time_of(hot['p50'])} hot)" if hot else ""
    return f"**{time_of(own)}**{again}, " + "; ".join([share_of(row, "ceiling not trusted"), *peers]) + old


def _whole(runs: Runs) -> list[str]:
    """Whole models: tokens per second, and learning."""
    lines = ["| whole models | figure | target |", "| --- | --- | --- |"]
    for device, (_, figures) in runs.items():
        for row in figures["rows"]:
            for target in row.get("targets", ()):
                at_least = "least" in target
                bound = target["least" if at_least else "most"]
                reached = (
                    "reached" if (target["value"] >= bound if at_least else target["value"] <= bound) else "missed"
                )
                where = "" if device == "cpu" else f", {device}"
                case = f"{row['case']}{where}: {target['what']}"
                unit = "x" if at_least else ""
                sign = ">=" if at_least else "<="
                old = f"; {OLDER}" if is_old(row, figures["machine"]["device"]) else ""
                lines.append(f"| {case} | {target['value']:.3g}{unit} | {sign} {bound}{unit}, {reached}{old} |")
    if len(lines) == 2:
        lines.append(f"| all | {NOT_MEASURED} | |")
    return lines


def _sources(runs: Runs) -> list[str]:
    """Where every column comes from."""
    found = [" ".join([source(name, run["machine"]), *filter(None, [run.get("note")])]) for name, run in runs.values()]
    return found or ["No result file is in bench/results yet."]


def rewritten(text: str, runs: Runs) -> str:
    """A page with the section between its markers replaced. ValueError where it has none."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page lacks {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{section(runs)}\n{END}{after}"


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    asked = parser.parse_args(arguments)
    runs = newest()
    wanted = {README: rewritten(README.read_text(encoding="utf-8"), runs), GROWTH: page(runs)}
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
