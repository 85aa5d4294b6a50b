"""The calibrated model's two tables: predicted beside measured, and what the kernels of today are predicted to take."""

import json
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import ON_CPU
from predict import CLOCK, ISSUE, Costs, Measured, fit, without

RUN = Path(__file__).parent / "results" / "NVIDIA-H100-80GB-HBM3-2026-11-26-bf69bd7.json"
"""The run that the costs are fitted to: of commit bf69bd7, whose kernels and torch's own beside them are counted."""

PREDICTED = tuple(benchmark.predicted for benchmark in ON_CPU)
PLANNED = tuple(row for predicted in PREDICTED for row in predicted.planned)
"""The kernels of today."""


def measured() -> list[Measured]:
    """The rows that were counted, with the seconds of the run: graph replays over inputs that are not in the cache."""
    rows = {(row["bench"], row["case"]): row for row in json.loads(RUN.read_text(encoding="utf-8"))["rows"]}

    def seconds(timed: dict[str, Any]) -> float:
        return timed["seconds"]["graph cold"]["p50"]

    fitted = [row for predicted in PREDICTED for row in predicted.fitted]
    shown = [row for predicted in PREDICTED for row in predicted.shown]
    found = [Measured(row, seconds(rows[row.bench, row.case]), True) for row in fitted]
    found += [Measured(row, seconds(rows[row.bench, row.case]), False) for row in shown]
    for peer, row in (one for predicted in PREDICTED for one in predicted.fitted_peers):
        taken = seconds(rows[row.bench, row.case]["peers"][peer])
        found.append(Measured(row._replace(bench=f"torch's {peer}"), taken, True))
    return found


def costs_text(costs: Costs) -> str:
    """What the fit found, in a sentence."""
    return (
        f"A kernel of a graph costs {1e6 * costs.launch:.2f} us ({1e6 * costs.early:.2f} where it starts early), a "
        f"round trip to memory {1e6 * costs.trip:.2f} us, filling its queues {1e6 * costs.filling:.2f} us; "
        f"memory gives {1e-12 / costs.streamed:.2f} TB/s in order, {1e-12 / costs.gathered:.2f} by gathered rows, the "
        f"second-level cache {1e-12 / costs.cached:.2f}; 16-bit products {1e-12 / costs.operations:.0f} TFLOP/s, "
        f"and an SM issues {1 / costs.slots / CLOCK:.1f} of {ISSUE} instructions a clock."
    )


def comparison(rows: list[Measured], costs: Costs) -> str:
    """Predicted beside measured. The last column is of costs that were fitted without the row."""
    lines = [
        "| row | measured us | predicted us | error | bound by | error where the row is left out of the fit |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for one in rows:
        found = costs.seconds(one.row.kernels)
        apart = without(rows, one.row).seconds(one.row.kernels) / one.seconds - 1 if one.fitted else None
        lines.append(
            f"| {one.row.bench}, {one.row.case} | {1e6 * one.seconds:.1f} | {1e6 * found:.1f} "
            f"| {found / one.seconds - 1:+.0%} | {costs.bound(one.row.kernels)} "
            f"| {'not fitted' if apart is None else f'{apart:+.0%}'}{one.row.note and f'; {one.row.note}'} |"
        )
    return "\n".join(lines)


def planned(costs: Costs) -> str:
    """What the kernels of today are predicted to take, beside their targets."""
    lines = ["| row | kernels | predicted us | bound by | target us | |", "| --- | --- | --- | --- | --- | --- |"]
    for row in PLANNED:
        found = 1e6 * costs.seconds(row.kernels)
        reached = "" if row.target is None else "reached" if found <= row.target else "not reached"
        lines.append(
            f"| {row.bench}, {row.case} | {len(row.kernels)} | {found:.1f} | {costs.bound(row.kernels)} "
            f"| {'' if row.target is None else f'{row.target:g}'} | {'; '.join(filter(None, (reached, row.note)))} |"
        )
    return "\n".join(lines) if PLANNED else "None is written down."


def section() -> list[str]:
    """Paragraphs and tables in Markdown."""
    rows = measured()
    costs = fit(rows)
    errors = [abs(without(rows, one.row).seconds(one.row.kernels) / one.seconds - 1) for one in rows if one.fitted]
    return [
        "## The model, and what it says of the run that it is fitted to",
        f"One NVIDIA H100 80GB HBM3, commit bf69bd7 ([results]({RUN.name})), graph replays over inputs that are not in "
        f"the cache. {costs_text(costs)} Fitted to {len(errors)} rows; a row left out of the fit is predicted within "
        f"{median(errors):.0%} in the middle and {max(errors):.0%} at worst. What the counts mean, and how a kernel's "
        "prediction is added: bench/predict.py.",
        comparison(rows, costs),
        "## Predicted: the kernels as they are now, on that card",
        planned(costs),
    ]
