"""Plots of an evaluation's result. They need matplotlib, the extra `plots`."""

import importlib.util
import io
from collections.abc import Callable, Sequence
from typing import Any

from memoir_fast.errors import MemoirError
from memoir_fast.evaluation.roc import roc_curve

_SIZE = (6.4, 3.8)
_SWEPT = {
    "reliability": "reliability",
    "generalization": "generalization",
    "locality": "locality",
    "paraphrases_routed": "paraphrases that reach their own edit",
}
_COLOURS = {
    "edits": "#1b6ca8",
    "paraphrases": "#e08e0b",
    "irrelevant": "#777777",
    "locality": "#a23b72",
    "neighbours": "#3a7d44",
}


def draw_all(result: dict[str, Any]) -> dict[str, Any]:
    """Name -> matplotlib figure, for each plot that the result has data for.

    Raises:
        MemoirError: matplotlib is not installed.
    """
    drawn = {name: make(result) for name, make in PLOTS.items()}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def require() -> None:
    """MemoirError where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise MemoirError("plots need matplotlib: pip install 'memoir-fast[plots]'")


def rendered(figure: Any, kind: str) -> bytes:
    """A figure as `svg` or `png`."""
    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else None  # the same result gives the same file
    figure.savefig(buffer, format=kind, dpi=130, bbox_inches="tight", metadata=metadata)
    return buffer.getvalue()


def overlaps(result: dict[str, Any]) -> dict[str, list[float]]:
    """Best overlap ratios by kind of prompt."""
    each = result["per_edit"]
    return {
        "edits": [one["overlap"] for one in each if one["overlap"] is not None],
        "paraphrases": [value for one in each for value in one["paraphrase_overlaps"]],
        "irrelevant": result["irrelevant_overlaps"],
        "locality": [value for one in each for value in one["locality_overlaps"]],
    }


def _axes(title: str, x: str, y: str) -> tuple[Any, Any]:
    require()
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _histogram(result: dict[str, Any]) -> Any:
    kinds = {name: values for name, values in overlaps(result).items() if values}
    figure, axes = _axes("Which prompts reach an edit", "best overlap ratio with a stored edit", "share of prompts")
    _shares(axes, kinds, 1.0)
    axes.axvline(result["tau"], color="black", linestyle="--", linewidth=1, label=f"tau = {result['tau']:.3f}")
    axes.legend(frameon=False)
    return figure


def _margins(result: dict[str, Any]) -> Any:
    kinds = {name: values for name, values in result["margins"].items() if values}
    if not kinds:
        return None
    x = "overlap ratio with its own case's edit, less that edit's threshold"
    figure, axes = _axes("How far from the threshold", x, "share of prompts")
    _shares(axes, kinds, max(max(values) for values in kinds.values()))
    axes.axvline(0, color="black", linestyle="--", linewidth=1, label="threshold")
    axes.legend(frameon=False)
    return figure


def _shares(axes: Any, kinds: dict[str, list[float]], high: float) -> None:
    """Histograms of values up to `high`, each kind's bars with a sum of 1."""
    low = min(min(values) for values in kinds.values())
    bins = [low - 0.01 + (high + 0.01 - low) * step / 60 for step in range(61)]
    for name, values in kinds.items():
        weights = [1 / len(values)] * len(values)
        axes.hist(values, bins, weights=weights, alpha=0.65, color=_COLOURS[name], label=f"{name} ({len(values)})")


def _roc(result: dict[str, Any]) -> Any:
    kinds = overlaps(result)
    paraphrases, unrelated = kinds["paraphrases"], kinds["irrelevant"] + kinds["locality"]
    if not paraphrases or not unrelated:
        return None
    curve = roc_curve(paraphrases, unrelated)
    title = f"Routing: area under the curve {result['roc_area']:.4f}"
    figure, axes = _axes(title, "irrelevant and locality prompts that match", "paraphrases that match")
    least = 0.5 / len(unrelated)
    axes.plot([max(false, least) for _, false, _ in curve], [true for _, _, true in curve], color=_COLOURS["edits"])
    false, true = (sum(value >= result["tau"] for value in kind) / len(kind) for kind in (unrelated, paraphrases))
    place = max(false, least), true
    axes.plot(*place, "o", color="black", label=f"tau = {result['tau']:.3f}")
    axes.set_xscale("log")
    axes.set_ylim(0, 1.02)
    axes.legend(frameon=False, loc="lower right")
    return figure


def _growth(result: dict[str, Any]) -> Any:
    steps = result["milestones"]
    if len(steps) < 2:
        return None
    figure, axes = _axes("All edits so far, after so many", "edits", "mean over edits")
    names = ("reliability", "generalization", "locality")
    _lines(axes, names, [(one["edits"], one) for one in steps])
    return figure


def _retention(result: dict[str, Any]) -> Any:
    first = result["milestones"][-1]["first"]["cases"] if result["milestones"] else 0
    steps = [one for one in result["milestones"] if one["first"]["cases"] == first]
    if len(steps) < 2:
        return None
    of = "the first edit" if first == 1 else f"the first {first} edits"
    figure, axes = _axes(f"What is left of {of}", "edits", f"mean over {of}")
    _lines(axes, ("reliability", "generalization"), [(one["edits"], one["first"]) for one in steps])
    return figure


def _sweep(result: dict[str, Any]) -> Any:
    swept = {int(name[2:]): figures for name, figures in result["baselines"].items() if name.startswith("k=")}
    if not swept:
        return None
    own, edits = result["config"]["k"], max(figures["cases"] for figures in swept.values())
    apart = own not in swept and result["edits"] != edits  # the run itself learned more edits: no point of the line
    if not apart:
        swept.setdefault(own, result["all_rows"])
    figure, axes = _axes(f"Columns per edit, D = {result['status']['width']}", "k", f"mean over {edits} edits")
    for (name, label), marker, colour in zip(_SWEPT.items(), "os^D", _COLOURS.values(), strict=False):
        points = [(k, figures[name]) for k, figures in sorted(swept.items()) if figures[name] is not None]
        if points:
            axes.plot(*zip(*points, strict=True), f"{marker}-", markersize=5, color=colour, label=label)
        if apart and result["all_rows"][name] is not None:
            axes.plot(own, result["all_rows"][name], marker, color=colour, fillstyle="none")
    if apart:
        axes.plot([], [], "o", color="black", fillstyle="none", label=f"after {result['edits']} edits")
    axes.set_xscale("log")
    ticks = sorted({*swept, own})
    axes.set_xticks(ticks, [str(k) for k in ticks], rotation=45 if len(ticks) > 8 else 0)
    axes.minorticks_off()
    axes.set_ylim(0, 1.03)
    axes.legend(frameon=False)
    return figure


def _compared(result: dict[str, Any]) -> Any:
    shown = {"edited": result["all_rows"], **result["baselines"]}
    if len(shown) < 2:
        return None
    figure, axes = _axes("The edited model and its baselines", "", "mean over edits")
    names = ("reliability", "generalization", "locality")
    for place, (name, colour) in enumerate(zip(names, _COLOURS.values(), strict=False)):
        heights = [figures[name] or 0.0 for figures in shown.values()]
        axes.bar([x + 0.27 * (place - 1) for x in range(len(shown))], heights, 0.25, color=colour, label=name)
    axes.set_xticks(range(len(shown)), list(shown), rotation=25, ha="right")
    axes.set_ylim(0, 1.2)
    axes.legend(frameon=False, ncols=3, loc="upper center")
    return figure


def _lines(axes: Any, names: Sequence[str], steps: Sequence[tuple[int, dict[str, Any]]]) -> None:
    """A line for each figure after so many edits: those drawn later are thinner, so that none hides another."""
    for name, colour, width in zip(names, _COLOURS.values(), (5, 3, 1.5), strict=False):
        points = [(edits, figures[name]) for edits, figures in steps if figures[name] is not None]
        if points:
            axes.plot(
                *zip(*points, strict=True), "o-", color=colour, label=name, linewidth=width, markersize=3 + 2 * width
            )
    axes.set_xscale("log")
    axes.set_xticks([edits for edits, _ in steps], [str(edits) for edits, _ in steps])
    axes.minorticks_off()
    axes.set_ylim(0, 1.05)
    axes.legend(frameon=False)


PLOTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "overlaps": _histogram,
    "margins": _margins,
    "roc": _roc,
    "edits": _growth,
    "retention": _retention,
    "k_sweep": _sweep,
    "baselines": _compared,
}
