"""The page on how cost grows: every measured figure of a run beside its formula. `bench/table.py` writes it."""

from collections.abc import Iterator
from typing import Any

from benchmarks import NAMED
from sources import is_old
from summary import share_of, source, time_of

HEAD = """# How cost grows

Written by `python bench/table.py`; every figure stands beside its own formula.
"""


def page(runs: dict[str, tuple[str, dict[str, Any]]], paged: tuple[str, dict[str, Any]] | None = None) -> str:
    """The page for the newest run of each device, and for the newest of `bench_pages`, whole or by itself."""
    parts = [HEAD]
    if paged is not None:
        name, figures = paged
        rows = [row for row in figures["rows"] if row["bench"] == "pages"]
        measured_on = source(name, figures["machine"], folder="results")
        parts.append(f"## With pages\n\n{' '.join([measured_on, *_older(rows, 'cpu')])}\n")
        parts += [_opened(rows), _grown(rows), _decoded(rows)]
    for device, (name, figures) in runs.items():
        rows = list(grown(figures))
        title = "CPU" if device == "cpu" else device
        measured_on = source(name, figures["machine"], folder="results")
        parts.append(f"## {title}\n\n{' '.join([measured_on, *_older(rows, figures['machine']['device'])])}\n")
        if not rows:
            parts.append("Growth was not measured in this run.\n")
            continue
        parts.append(_times(sorted((row for row in rows if "op" in row["parameters"]), key=_place)))
        parts.append(_sizes(rows))
        parts.append(_matches(rows))
    return "\n".join(part for part in parts if part)


def _older(rows: list[dict[str, Any]], device: str) -> list[str]:
    old = sum(is_old(row, device) for row in rows)
    return [f"Older than today's sources: {old} of {len(rows)} rows."] if old else []


def grown(figures: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows of `scaling`, and those of ops that are a step of the same growth, named as if they were its."""
    for row in figures["rows"]:
        name, numbers = row["bench"], row["parameters"]
        if name == "scaling":
            yield row
        elif name in NAMED and (step := NAMED[name].growth_step(numbers)):
            yield row | {"case": f"{name}, {step}", "parameters": numbers | {"op": name}}


def _place(row: dict[str, Any]) -> tuple[str, str, int]:
    """By op, by what grows, by how much."""
    op, step = row["case"].split(", ", 1)
    name, size = step.split("=")
    return op, name, int(size.replace(",", ""))


def _times(rows: list[dict[str, Any]]) -> str:
    lines = [
        "Times of one call, cold and called again and again. The formula is the op's bytes over the bandwidth, or its",
        "operations over the rate of a matrix product where that takes longer, both measured in the run.",
        "",
        "| case | cold | again | formula | cold over formula | share of the bandwidth |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        if "seconds" not in row:
            lines.append(f"| {row['case']} | not measured | | | | |")
            continue
        hot, floor = row["seconds"].get(row["headline"].replace("cold", "hot")), row["floor_seconds"]
        again = time_of(hot["p50"]) if hot else "-"
        formula = f"{time_of(floor)}, {row['bound']} | {row['times_floor']:.3g}x" if floor else "- | -"
        own = time_of(row["seconds"][row["headline"]]["p50"])
        lines.append(f"| {row['case']} | {own} | {again} | {formula} | {share_of(row)} |")
    return "\n".join([*lines, ""])


def _sizes(rows: list[dict[str, Any]]) -> str:
    lines = [
        "A memory in this process and on disk, at SmolLM2's layer (D=1536, k=440), in MB. The store holds a mask, a",
        "page, a threshold and two lengths for each place that it has, 4 (W + 4) bytes; in rows older than that its",
        "columns too, 4 k more. A saved one holds masks only, 4 W bytes per edit, and 8 D.",
        "",
        "| edits | store | formula | saved tensors | formula | saved text |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in _of(rows, "memory"):
        edits, found = f"{row['parameters']['N']:,}", row.get("figures")
        names = ("store_bytes", "store_bytes_formula", "saved_tensor_bytes", "saved_tensor_bytes_formula")
        cells = [f"{found[name] / 1e6:.4g}" for name in (*names, "saved_text_bytes")] if found else []
        lines.append(f"| {edits} | {' | '.join(cells) if cells else 'not measured | | | |'} |")
    return "\n".join([*lines, ""])


def _matches(rows: list[dict[str, Any]]) -> str:
    lines = [
        "False matches among random masks, at SmolLM2's layer: 1,024 random queries, and the threshold that 5 % or",
        "fewer of them reach by formula. The best overlap is the location of the Gumbel distribution, as a share of k.",
        "",
        "| edits | threshold | false matches | formula | best overlap | formula |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in _of(rows, "false matches"):
        found = row["figures"]
        rates = f"{found['false_match_rate']:.1%} | {found['false_match_rate_formula']:.1%}"
        best = f"{found['best_overlap']:.4f} | {found['best_overlap_formula']:.4f}"
        lines.append(f"| {found['N']:,} | {found['threshold']:.3f} | {rates} | {best} |")
    return "\n".join([*lines, ""])


def _opened(rows: list[dict[str, Any]]) -> str:
    lines = [
        "A memory at SmolLM2's layer: pages that so many edits live on, and the bytes that these take when full, by",
        "formula; those that were filled, which are saved and opened; all else is measured. Opening verifies every",
        "byte of the folder; memory is what the process that opens it grows by at most, mapped files included. All",
        "times of this section are processor time of one thread.",
        "",
        "| edits | pages | all of them | filled | store | folder | opened in | memory | search |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in _of(rows, "opening"):
        found = row["figures"]
        sizes = [_bytes(found[name]) for name in ("store_bytes", "saved_bytes")]
        pages = f"{found['pages']:,} | {_bytes(found['memory_bytes'])} | {found['pages_made']:,}"
        times = (
            f"{found['open_seconds']:.3g} s | {_bytes(found['open_peak_bytes'])} | {time_of(found['search_seconds'])}"
        )
        lines.append(f"| {found['N']:,} | {pages} | {' | '.join(sizes)} | {times} |")
    return "\n".join([*lines, ""])


def _grown(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in _of(rows, "growing"):
        found = row["figures"]
        seconds, slowest = f"{found['grow_seconds']:.3g} s", time_of(found["grow_slowest_seconds"])
        lines += [
            f"A store of LLaMA-3-8B's masks that grows to {found['N']:,} rows, a thousand at a time: {seconds}, "
            f"{slowest} at",
            f"most at once; the rows are {_bytes(found['rows_bytes'])}, and the process grows by "
            f"{_bytes(found['grow_peak_bytes'])} at most.",
            "",
        ]
    return "\n".join(lines)


def _decoded(rows: list[dict[str, Any]]) -> str:
    lines = [
        "Decoding with SmolLM2-135M, token by token in turn with the unedited model. The share is the median over",
        "steps of the unedited model's time over the variant's.",
        "",
        "| edits | variant | tokens per second | share of unedited |",
        "| --- | --- | --- | --- |",
    ]
    for row in (*_of(rows, "decoding"), *_of(rows, "one page")):
        for name, seen in row.get("figures", {}).get("decode", {}).items():
            cells = f"{name} | {seen['tokens_per_second']:.3g} | {seen['over_unedited']:.1%}"
            lines.append(f"| {row['figures']['N']:,} | {cells} |")
    lines.append("")
    for row in _of(rows, "one page"):
        beside = row.get("figures", {}).get("pages_beside_another", {})
        shares = ", ".join(f"{share:.1%} {name}" for name, share in beside.items())
        lines += [f"The speed with 40 pages over that with one, the median over steps of one run: {shares}.", ""]
    return "\n".join(lines)


def _bytes(count: float) -> str:
    return f"{count / 1e6:.3g} MB" if count < 1e9 else f"{count / 1e9:.3g} GB"


def _of(rows: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["case"].startswith(kind)]
