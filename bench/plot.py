"""Plots of results, as SVG for a README: roofline, search against N, product against tokens, tokens per second.

    python bench/plot.py [RESULT.json] [--folder bench/plots] [--format svg]

Without a file, of each device's newest whole run in bench/results/, as in the README.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from growth import grown
from summary import place
from table import newest

HERE = Path(__file__).resolve().parent
OPS = ("prompt_feature", "tophash", "mask_overlap", "mask_match", "masked_linear", "memory_update", "layer")
COLOURS = dict(zip(OPS, plt.get_cmap("tab10").colors, strict=False))
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
        edge = [0.03, rate / bandwidth, 3e3]
        heights = [min(rate, bandwidth * x) / 1e9 for x in edge]
        axes.plot(edge, heights, "k", linestyle=dashes, linewidth=1, label=f"ceiling, {dtype} products")
    for op in OPS:
        rows = timed(figures, op)
        points = [(_operations(row) / row["bytes"], _operations(row) / own_seconds(row) / 1e9) for row in rows]
        if points:
            label = f"{op} (bit operations)" if op.startswith("mask_") else op
            axes.scatter(*zip(*points, strict=True), s=28, color=COLOURS[op], label=label, zorder=3)
    axes.set(xscale="log", yscale="log", xlabel="operations per byte", ylabel="10^9 operations per second")
    axes.set_title("Roofline: ops on cold inputs")
    axes.legend(fontsize=7, loc="lower right")


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
    stored = [row["parameters"]["N"] for row in rows]
    axes.set_prop_cycle(color=[COLOURS[op] for op in OPS if op != "mask_match"])
    mine = [own_seconds(row) * 1e3 for row in rows]
    axes.plot(stored, mine, "o-", color="crimson", linewidth=2, zorder=5, label="mask_match")
    axes.plot(stored, [row["floor_seconds"] * 1e3 for row in rows], "k--", linewidth=1, label="bytes / bandwidth")
    peers: dict[str, list[tuple[int, float]]] = {}
    for row in timed(figures, "mask_match"):
        numbers = row["parameters"]
        for name, seen in row["peers"].items():
            if "ratio" in seen and numbers["B"] == 1 and numbers["D"] == 14336:
                peers.setdefault(name, []).append((numbers["N"], seen["ratio"] * own_seconds(row) * 1e3))
    for name, points in peers.items():
        axes.plot(*zip(*sorted(points), strict=True), "s:", markersize=4, linewidth=1, label=name)
    axes.set(xscale="log", yscale="log", xlabel="stored edits N", ylabel="ms per query")
    axes.set_title("One query among N edits, D = 14336")
    axes.legend(fontsize=7)


def product(figures: dict[str, Any], axes: Any) -> None:
    """masked_linear against tokens and against k."""
    rows = [row for row in grown(figures) if "seconds" in row and row["parameters"]["op"] == "masked_linear"]
    for key, marker, words in (("S", "o-", "tokens S (k = 4096)"), ("k", "s-", "active columns k (S = 1)")):
        chosen = [row for row in rows if row["case"].startswith(f"masked_linear, {key}=")]
        points = sorted((row["parameters"][key], own_seconds(row), row["floor_seconds"]) for row in chosen)
        if points:
            numbers, seconds, floors = zip(*points, strict=True)
            (line,) = axes.plot(numbers, [one * 1e3 for one in seconds], marker, label=f"against {words}")
            axes.plot(numbers, [one * 1e3 for one in floors], "--", linewidth=1, color=line.get_color(), label="floor")
    axes.set(xscale="log", yscale="log", xlabel="tokens S, or columns k", ylabel="ms")
    axes.set_title("masked_linear, D = 14336, bfloat16")
    if rows:
        axes.legend(fontsize=7)


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
        axes.set_title(f"Decoding, {rows[0]['parameters']['model']}: 100 % is {speed:.0f} tokens/s")
        axes.legend(fontsize=7, loc="lower left")
    axes.set(xscale="log", xlabel="stored edits N", ylabel="% of the unedited model's tokens/s", ylim=(80, 110))


PLOTS = {"roofline": roofline, "search": search, "product": product, "generation": generation}


def draw(figures: dict[str, Any], folder: Path, kind: str = "svg") -> list[Path]:
    """Writes all plots as `<device>-<plot>.<kind>`; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    machine = figures["machine"]
    device = "cpu" if machine["device"] == "cpu" else place(machine).replace(" ", "-")
    written = []
    with plt.rc_context(_STYLE | {"svg.hashsalt": "memoir_fast"}):
        for name, plot in PLOTS.items():
            figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
            plot(figures, axes)
            figure.text(0.995, 0.005, f"{place(machine)}, {machine['date']}", ha="right", fontsize=6, color="0.5")
            path = folder / f"{device}-{name}.{kind}"
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
