"""Plots of results, as SVG for a README: roofline, search and chance against N, product against tokens and k, tokens/s.

    python bench/plot.py [RESULT.json] [--folder bench/plots] [--format svg]

Without a file, of each device's newest whole run in bench/results/, as in the README.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from growth import grown
from matplotlib.ticker import LogLocator
from summary import place
from table import newest

HERE = Path(__file__).resolve().parent
OPS = ("prompt_feature", "tophash", "mask_overlap", "mask_match", "masked_linear", "memory_update", "layer")
COLOURS = dict(zip(OPS, matplotlib.color_sequences["tab10"], strict=False))
_STYLE = {"axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False, "font.size": 10}


def timed(figures: dict[str, Any], *benches: str) -> list[dict[str, Any]]:
    """Rows with a time."""
    return [row for row in figures["rows"] if "seconds" in row and row["bench"] in benches]


def own_seconds(row: dict[str, Any]) -> float:
    """The headline's median."""
    return row["seconds"][row["headline"]]["p50"]


def roofline(figures: dict[str, Any], axes: Any) -> None:
    """Every case's operations per second over its operations per byte, under the machine's own ceilings."""
    ceilings = figures["machine"]["ceilings"]
    bandwidth = ceilings["read_bytes_per_second"]
    for dtype, dashes in (("float32", "--"), ("bfloat16", "-")):
        rate = ceilings[f"{dtype}_operations_per_second"]
        edge = [0.03, rate / bandwidth, 1e5]
        heights = [min(rate, bandwidth * x) / 1e9 for x in edge]
        axes.plot(edge, heights, "k", linestyle=dashes, linewidth=1, label=f"ceiling, {dtype} products")
    for op in OPS:
        rows = timed(figures, op)
        points = [(_operations(row) / row["bytes"], _operations(row) / own_seconds(row) / 1e9) for row in rows]
        if points:
            label = f"{op} (bits: no product bounds it)" if op.startswith("mask_") else op
            axes.scatter(*zip(*points, strict=True), s=28, color=COLOURS[op], label=label, zorder=3)
    axes.set(xscale="log", yscale="log", xlabel="operations per byte", ylabel="operations per second, $10^9$")
    axes.set_title("Roofline: every case, inputs not in the cache")
    axes.legend(fontsize=7.5, loc="lower right")


def _operations(row: dict[str, Any]) -> float:
    """Operations of a row; a bit pair of two masks counts as two, a float that is only looked at as one."""
    if row["operations"]:
        return row["operations"]
    numbers = row["parameters"]
    if row["bench"] in ("mask_match", "mask_overlap"):
        return 2 * numbers["B"] * numbers["N"] * numbers["D"]
    return numbers.get("B", 1) * numbers.get("S", 1) * numbers["D"]


def search(figures: dict[str, Any], axes: Any) -> None:
    """mask_match against N, its floor, and its peers."""
    rows = [row for row in grown(figures) if "seconds" in row and row["parameters"]["op"] == "mask_match"]
    rows = sorted((row for row in rows if row["parameters"]["B"] == 1), key=lambda row: row["parameters"]["N"])
    if not rows:
        return
    stored = [row["parameters"]["N"] for row in rows]
    axes.set_prop_cycle(color=[COLOURS[op] for op in OPS if op != "mask_match"])
    mine = [own_seconds(row) * 1e3 for row in rows]
    axes.plot(stored, mine, "o-", color="crimson", linewidth=2, zorder=5, label="mask_match")
    axes.plot(stored, _floors(rows), "k--", linewidth=1, label="its bytes over the bandwidth")
    peers: dict[str, list[tuple[int, float]]] = {}
    for row in timed(figures, "mask_match"):
        numbers = row["parameters"]
        for name, seen in row["peers"].items():
            if "ratio" in seen and numbers["B"] == 1 and numbers["D"] == 14336:
                peers.setdefault(name, []).append((numbers["N"], seen["ratio"] * own_seconds(row) * 1e3))
    for name, points in peers.items():
        axes.plot(*zip(*sorted(points), strict=True), "s:", markersize=4, linewidth=1, label=name)
    axes.set(xscale="log", yscale="log", xlabel="stored edits N", ylabel="milliseconds per query")
    _plain(axes, [number for number in (1_000, 10_000, 100_000, 1_000_000) if number in stored])
    axes.set_title("mask_match: one query among N edits, D = 14336")
    axes.legend(fontsize=7.5)


def tokens(figures: dict[str, Any], axes: Any) -> None:
    """masked_linear against tokens."""
    _products(figures, axes, "S", "tokens S of one sequence")
    axes.set_title("masked_linear against tokens, D = 14336, O = k = 4096, bfloat16")


def columns(figures: dict[str, Any], axes: Any) -> None:
    """masked_linear against active columns."""
    _products(figures, axes, "k", "active columns k")
    axes.set_title("masked_linear of one token, D = 14336, O = 4096, bfloat16")


def _products(figures: dict[str, Any], axes: Any, key: str, words: str) -> None:
    rows = [row for row in grown(figures) if row["case"].startswith(f"masked_linear, {key}=") and "seconds" in row]
    if rows:
        rows.sort(key=lambda row: row["parameters"][key])
        numbers = [row["parameters"][key] for row in rows]
        axes.plot(numbers, [own_seconds(row) * 1e3 for row in rows], "o-", color="crimson", label="masked_linear")
        axes.plot(numbers, _floors(rows), "k--", linewidth=1, label="its bytes or operations at the machine's rates")
        axes.legend(fontsize=7.5)
    axes.set(xscale="log", yscale="log", xlabel=words, ylabel="milliseconds")
    _plain(axes, [row["parameters"][key] for row in rows])


def _plain(axes: Any, numbers: Sequence[float]) -> None:
    """Ticks at these numbers, written out, instead of powers of ten that run into each other."""
    if numbers:
        axes.set_xticks(numbers, [f"{number:,}" for number in numbers])
    axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    low, high = axes.get_ylim()
    if axes.get_yscale() == "log" and high < 100 * low:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))


def _floors(rows: list[dict[str, Any]]) -> list[float]:
    """Milliseconds; nothing is drawn where the ceiling is not trusted."""
    return [float("nan") if row["floor_seconds"] is None else row["floor_seconds"] * 1e3 for row in rows]


def chance(figures: dict[str, Any], axes: Any) -> None:
    """Best overlap of random masks against N: what the threshold has to stay above."""
    rows = [row["figures"] for row in figures["rows"] if row["case"].startswith("false matches")]
    if not rows:
        return
    stored = [row["N"] for row in rows]
    for name, style, label in (
        ("best_overlap", "o", "measured, 1,024 queries"),
        ("best_overlap_formula", "k--", "formula"),
        ("threshold", "^:", "threshold for 5 % false matches"),
    ):
        axes.plot(stored, [row[name] for row in rows], style, label=label)
    axes.set(xscale="log", xlabel="stored edits N", ylabel="best overlap, share of k", ylim=(0.25, 0.55))
    _plain(axes, stored)
    axes.axhline(0.5, color="0.5", linewidth=1)
    axes.annotate("tau = 0.5", (0.02, 0.5), xycoords=("axes fraction", "data"), va="bottom", color="0.4", fontsize=8)
    axes.set_title("Random masks: the best of N overlaps, D = 1536, k = 440")
    axes.legend(fontsize=7.5, loc="upper right", bbox_to_anchor=(1, 0.8))


def generation(figures: dict[str, Any], axes: Any) -> None:
    """Tokens per second of a whole model against stored edits."""
    rows = sorted(
        (row for row in figures["rows"] if row["bench"] == "generate" and "figures" in row),
        key=lambda row: row["figures"]["stored"],
    )
    for name in ("unedited", "unmatched", "matched"):
        shares = [100 * row["figures"]["decode"][name]["over_unedited"] for row in rows]
        if rows:
            axes.plot([row["figures"]["stored"] for row in rows], shares, "o-", label=name)
    if rows:
        speed = rows[0]["figures"]["decode"]["unedited"]["tokens_per_second"]
        axes.set_title(f"Decoding, {rows[0]['parameters']['model']}: unedited, {speed:.0f} tokens per second")
        axes.legend(fontsize=7.5, loc="lower left")
    axes.set(xscale="log", xlabel="stored edits N", ylabel="tokens per second, % of unedited", ylim=(80, 110))
    _plain(axes, [row["figures"]["stored"] for row in rows])


PLOTS = {
    "roofline": roofline,
    "search": search,
    "tokens": tokens,
    "columns": columns,
    "chance": chance,
    "generation": generation,
}


def draw(figures: dict[str, Any], folder: Path, kind: str = "svg") -> list[Path]:
    """Writes as `<device>-<plot>.<kind>` all plots that the figures have rows for; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    machine = figures["machine"]
    device = "cpu" if machine["device"] == "cpu" else place(machine).replace(" ", "-")
    written = []
    with plt.rc_context(dict[Any, Any](_STYLE | {"svg.hashsalt": "memoir_fast"})):
        for name, plot in PLOTS.items():
            figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
            path = folder / f"{device}-{name}.{kind}"
            plot(figures, axes)
            if not axes.has_data():  # the run has no such row
                plt.close(figure)
                path.unlink(missing_ok=True)
                continue
            figure.supxlabel(f"{place(machine)}, {machine['date']}", x=0.99, ha="right", fontsize=7, color="0.4")
            figure.savefig(path, metadata={"Date": None} if kind == "svg" else None, dpi=110)
            plt.close(figure)
            written.append(path)
    return written


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("result", type=Path, nargs="?")
    parser.add_argument("--folder", type=Path, default=HERE / "plots")
    parser.add_argument("--format", choices=("svg", "png"), default="svg")
    asked = parser.parse_args(arguments)
    if asked.result:
        wanted = [json.loads(asked.result.read_text(encoding="utf-8"))]
    else:
        wanted = [figures for _, figures in newest().values()]
    for figures in wanted:
        for path in draw(figures, asked.folder, asked.format):
            print(path)


if __name__ == "__main__":
    main()
