"""What a benchmark says of itself, in one place: its cases, its sources, its targets, its share of every page.

`bench_<name>.py` has one `Benchmark`; `benchmarks.py` lists them, and what runs, judges, draws or predicts gathers from
there. All but the name and the sources is optional.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from cases import Case, Settings
from measure import Timer
from predict import Row
from shapes import Layer

if TYPE_CHECKING:  # needs triton, which is not everywhere
    from machine_code import Launch

Figure = Callable[[dict[str, Any]], float | None]
"""A row's figure; KeyError where the row lacks it."""

Plot = Callable[[dict[str, Any], Sequence[dict[str, Any]], Any], None]
"""Draws figures into axes of matplotlib; given beside them are the rows that `growth.grown` finds in them."""


class Target(NamedTuple):
    """A bound on a figure of one case."""

    case: str
    what: str
    figure: Figure
    bound: float
    at_least: bool = True


class Call(NamedTuple):
    """A launcher's call: what to run on meta tensors, the bytes it cannot avoid, its multiply-add operations."""

    name: str
    run: Callable[[], object]
    floor_bytes: int
    operations: int = 0
    bounds: "Callable[[Sequence[Launch]], dict[str, float]]" = lambda _: {}
    """Seconds that other resources take, by name, given what was launched."""


def elements(numbers: dict[str, Any]) -> float:
    """Floats that a row looks at: what its operations are taken for where it multiplies nothing."""
    return numbers.get("B", 1) * numbers.get("S", 1) * numbers["D"]


class Roofline(NamedTuple):
    """A benchmark's points in the plot of all cases."""

    colour: str
    """`C0` to `C9` of matplotlib's cycle; the points are drawn in this order."""
    operations: Callable[[dict[str, Any]], float] = elements
    """Of a row that has none, by its parameters."""
    remark: str = ""


class Predicted(NamedTuple):
    """Rows whose kernels are counted: see predict.py, and static_time.py for the run that they are of."""

    fitted: Sequence[Row] = ()
    """Measured rows that the costs are fitted to."""
    shown: Sequence[Row] = ()
    """Measured rows that they are not fitted to."""
    fitted_peers: Sequence[tuple[str, Row]] = ()
    """As `fitted`, of a row's peer by name."""
    planned: Sequence[Row] = ()
    """The kernels of today, written down before they ran."""


def gist(figures: dict[str, Any]) -> str:
    """One line for a row that has figures instead of times: its numbers."""
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items() if isinstance(value, (int, float)))


def told(figures: dict[str, Any], path: str | None) -> None:
    """Prints the figures of a benchmark that is run by itself, and writes them to a file where one is named."""
    text = json.dumps(figures, indent=1)
    print(text)
    if path:
        Path(path).write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class Benchmark:
    """What is known of one benchmark."""

    name: str
    sources: tuple[str, ...]
    """The files that its figures depend on, as patterns from the project's root. What all ops share (launching, checks)
    is left out: it changes often, and a kernel's time seldom with it."""
    cases: Callable[[Settings], Iterable[Case]] = lambda _: ()
    rows: Callable[[Settings, Timer], Iterator[dict[str, Any]]] | None = None
    """Rows that are no cases: figures of whole models."""
    most_seconds: float = 40.0
    """In a process of its own."""
    cpu_targets: tuple[Target, ...] = ()
    gpu_targets: tuple[Target, ...] = ()
    limits: tuple[str, ...] = ()
    """Peers that compute something else, and that it must not exceed all the same."""
    calls: Callable[[Layer, torch.dtype], list[Call]] = lambda *_: []
    """What its launchers are compiled, counted and predicted for."""
    predicted: Predicted = Predicted()
    paper: Callable[[], list[str]] = list
    """Paragraphs of its own on the page of predictions."""
    growth_step: Callable[[dict[str, Any]], str | None] = lambda _: None
    """Which step of growth a row with these parameters is, as `N=7,000`; None for none."""
    roofline: Roofline | None = None
    listed: tuple[tuple[str, str], ...] = ()
    """In the tables of times: what a row is called there, and its case."""
    headlines: tuple[tuple[str, str], ...] = ()
    """In the README: in words, and what the row is called in the tables."""
    plots: dict[str, Plot] = field(default_factory=dict)
    gist: Callable[[dict[str, Any]], str] = gist
