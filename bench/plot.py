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
from benchmark import Plot
from benchmarks import ON_CPU
from figure import own_seconds, timed
from growth import grown
from summary import place
from table import newest

HERE = Path(__file__).resolve().parent
_STYLE = {"axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False, "font.size": 10}


def roofline(figures: dict[str, Any], _: Sequence[dict[str, Any]], axes: Any) -> None:
    """Every case's operations per second over its operations per byte, under the machine's own ceilings."""
    ceilings = figures["machine"]["ceilings"]
    bandwidth = ceilings["read_bytes_per_second"]
    for dtype, dashes in (("float32", "--"), ("bfloat16", "-")):
        rate = ceilings[f"{dtype}_operations_per_second"]
        edge = [0.03, rate / bandwidth, 1e5]
        heights = [min(rate, bandwidth * x) / 1e9 for x in edge]
        axes.plot(edge, heights, "k", linestyle=dashes, linewidth=1, label=f"ceiling, {dtype} products")
    drawn = [(benchmark.name, benchmark.roofline) for benchmark in ON_CPU if benchmark.roofline]
    for name, style in sorted(drawn, key=lambda one: one[1].colour):
        points = []
        for row in timed(figures, name):
            operations = row["operations"] or style.operations(row["parameters"])
            points.append((operations / row["bytes"], operations / own_seconds(row) / 1e9))
        if points:
            label = f"{name} ({style.remark})" if style.remark else name
            axes.scatter(*zip(*points, strict=True), s=28, color=style.colour, label=label, zorder=3)
    axes.set(xscale="log", yscale="log", xlabel="operations per byte", ylabel="operations per second, $10^9$")
    axes.set_title("Roofline: every case, inputs not in the cache")
    axes.legend(fontsize=7.5, loc="lower right")


PLOTS: dict[str, Plot] = {"roofline": roofline}
for _benchmark in ON_CPU:
    PLOTS |= _benchmark.plots


def draw(figures: dict[str, Any], folder: Path, kind: str = "svg") -> list[Path]:
    """Writes as `<device>-<plot>.<kind>` all plots that the figures have rows for; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    machine = figures["machine"]
    device = "cpu" if machine["device"] == "cpu" else place(machine).replace(" ", "-")
    written, steps = [], list(grown(figures))
    with plt.rc_context(dict[Any, Any](_STYLE | {"svg.hashsalt": "memoir_fast"})):
        for name, plot in PLOTS.items():
            figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
            path = folder / f"{device}-{name}.{kind}"
            plot(figures, steps, axes)
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
