"""The calibrated model's tables: what it says of the kernels of today, and of those of the run that it is fitted to."""

from statistics import median

import planned
from benchmarks import ON_CPU
from planned import RUN, of_run, taken
from predict import CLOCK, ISSUE, Costs, Measured, fit, without

PREDICTED = tuple(benchmark.predicted for benchmark in ON_CPU)


def measured() -> list[Measured]:
    """The rows that were counted, with the seconds of the run."""
    rows = of_run()
    fitted = [row for predicted in PREDICTED for row in predicted.fitted]
    shown = [row for predicted in PREDICTED for row in predicted.shown]
    found = [Measured(row, taken(rows[row.bench, row.case]), True) for row in fitted]
    found += [Measured(row, taken(rows[row.bench, row.case]), False) for row in shown]
    for peer, row in (one for predicted in PREDICTED for one in predicted.fitted_peers):
        seconds = taken(rows[row.bench, row.case]["peers"][peer])
        found.append(Measured(row._replace(bench=f"torch's {peer}"), seconds, True))
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


def section() -> list[str]:
    """Paragraphs and tables in Markdown: the kernels of today first, then how far the model is to be believed."""
    rows = measured()
    costs = fit(rows)
    errors = [abs(without(rows, one.row).seconds(one.row.kernels) / one.seconds - 1) for one in rows if one.fitted]
    return [
        "## Targets: what the kernels of today reach, by a calibrated model",
        "Of an NVIDIA H100 80GB HBM3, by graph replays over inputs that are not in the cache. Predicted, but for what "
        f"is called measured: in the run of commit bf69bd7 ([results]({RUN.name})), to which the model is fitted, or "
        f"in probes of later kernels ([output]({planned.PROBES.name})), to which it is not. Where a kernel has changed "
        "since, that is said, and the figure is the former kernel's. Dense products and base layers are predicted as "
        "the kernels are; other peers took what the run says. What a call costs the host is measured where a "
        "benchmark runs, and not predicted.",
        planned.targets_table(costs),
        "The same kernels' times. The error is the model's where a kernel was measured, for the kernel as it was then.",
        planned.times_table(costs),
        "## The model, and what it says of the run that it is fitted to",
        f"{costs_text(costs)} Fitted to {len(errors)} rows; a row left out of the fit is predicted within "
        f"{median(errors):.0%} in the middle and {max(errors):.0%} at worst. What the counts mean, and how a kernel's "
        "prediction is added: bench/predict.py.",
        comparison(rows, costs),
    ]
