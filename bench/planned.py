"""The kernels of today: what the calibrated model says that they take, which targets that reaches, what was measured.

A prediction is judged as a measurement is: it becomes a row as of a result file, and the benchmark's targets read it.
"""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import ON_CPU
from predict import Costs, Row
from targets import Verdict, targets

RESULTS = Path(__file__).parent / "results"
RUN = RESULTS / "NVIDIA-H100-80GB-HBM3-2026-11-26-bf69bd7.json"
"""The run that the costs are fitted to: of commit bf69bd7, whose kernels and torch's own beside them are counted."""
PROBES = RESULTS / "NVIDIA-H100-80GB-HBM3-2026-11-26-probes.txt"
"""What probes of later kernels printed, on such a card."""
MODE = "graph cold"

PLANNED = tuple(row for benchmark in ON_CPU for row in benchmark.predicted.planned)


@cache
def of_run() -> dict[tuple[str, str], dict[str, Any]]:
    """The run's rows by benchmark and case."""
    return {(row["bench"], row["case"]): row for row in json.loads(RUN.read_text(encoding="utf-8"))["rows"]}


def taken(timed: dict[str, Any]) -> float:
    """Seconds of a row or a peer of the run: a graph's replays over inputs that are not in the cache."""
    return timed["seconds"][MODE]["p50"]


def seen(row: Row) -> float | None:
    """Seconds that were measured of a planned row; None where none were.

    Raises LookupError where the probes printed nothing of the kind, or the run has no such row.
    """
    if row.seen is None:
        return None
    if not row.seen.pattern:
        return taken(of_run()[row.bench, row.case])
    found = re.findall(row.seen.pattern, PROBES.read_text(encoding="utf-8"))
    if not found:
        raise LookupError(f"{PROBES.name} has nothing that matches {row.seen.pattern!r}, of {row.bench}, {row.case}")
    return float(found[-1]) * 1e-6  # of several forms the last one stayed


def error(row: Row, costs: Costs) -> float | None:
    """How far the model is off where the kernels were measured, as they were then; None where those are not counted."""
    seconds = seen(row)
    if seconds is None or row.seen is None or (row.seen.since and not row.seen.kernels):
        return None
    return costs.seconds(row.seen.kernels or row.kernels) / seconds - 1


def as_result(row: Row, seconds: float, peers: dict[str, float]) -> dict[str, Any]:
    """A row as of a result file, of so many seconds; of peers that are not given, and of bytes, what the run has."""
    run = of_run().get((row.bench, row.case), {})
    times = {
        name: taken(peer) for name, peer in run.get("peers", {}).items() if MODE in peer.get("seconds", {})
    } | peers
    found: dict[str, Any] = {"bench": row.bench, "case": row.case, "headline": MODE}
    found["seconds"] = {MODE: {"p50": seconds}}
    found["peers"] = {name: {"ratios": {MODE: time / seconds}} for name, time in times.items()}
    if "bytes" in run:
        found["share_of_ceiling"] = run["bytes"] / seconds / run["ceiling_bytes_per_second"]
    return found


class Judged(NamedTuple):
    """A target's figure by the model, and by what was measured of the row's kernels or of those before them."""

    predicted: Verdict
    measured: float | None
    row: Row | None


def judged(costs: Costs) -> list[Judged]:
    """Every target of a GPU that a benchmark has, and those of planned rows themselves."""
    rows = {(row.bench, row.case): row for row in PLANNED}
    found = []
    for benchmark, target in targets("cuda"):
        row, value, measured = rows.get((benchmark.name, target.case)), None, None
        what = f"{benchmark.name}, {target.case}: {target.what}"
        if row is not None:
            peers = {name: costs.seconds(kernels) for name, kernels in row.peers}
            value = target.figure(as_result(row, costs.seconds(row.kernels), peers))
            seconds = seen(row)
            measured = None if seconds is None else target.figure(as_result(row, seconds, {}))
        found.append(Judged(Verdict(what, value, target.bound, target.at_least), measured, row))
    for row in PLANNED:
        if row.target is not None:
            verdict = Verdict(f"{row.bench}, {row.case}: us", 1e6 * costs.seconds(row.kernels), row.target, False)
            seconds = seen(row)
            found.append(Judged(verdict, None if seconds is None else 1e6 * seconds, row))
    return found


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _measured_of(row: Row | None) -> str:
    if row is None or row.seen is None:
        return ""
    where = "measured, in a probe" if row.seen.pattern else "measured, in the run"
    return f"{where}{row.seen.since and f'; new since: {row.seen.since}'}"


def targets_table(costs: Costs) -> str:
    """Each target: predicted, wanted, reached or not, and measured."""
    lines = ["| target | predicted | wanted | by the model | measured | |", "| --- | --- | --- | --- | --- | --- |"]
    for one in judged(costs):
        verdict, sign = one.predicted, ">=" if one.predicted.at_least else "<="
        word = {"reached": "reached", "MISSED": "not reached"}.get(verdict.word, "not counted")
        lines.append(
            f"| {verdict.what} | {_figure(verdict.value)} | {sign} {verdict.bound:,g} | {word} "
            f"| {_figure(one.measured)} | {_measured_of(one.row)} |"
        )
    return "\n".join(lines)


def times_table(costs: Costs) -> str:
    """Each planned row: its time by the model, what bounds it, what was measured and how far off the model is there."""
    lines = [
        "| row | kernels | predicted us | bound by | measured us | error | |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in PLANNED:
        seconds, off = seen(row), error(row, costs)
        remarks = "; ".join(filter(None, (_measured_of(row), row.note)))
        lines.append(
            f"| {row.bench}, {row.case} | {len(row.kernels)} | {1e6 * costs.seconds(row.kernels):,.1f} "
            f"| {costs.bound(row.kernels)} | {'' if seconds is None else f'{1e6 * seconds:.1f}'} "
            f"| {'' if off is None else f'{off:+.0%}'} | {remarks} |"
        )
    return "\n".join(lines)
