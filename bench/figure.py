"""What is read off the rows of a result file, and how it is drawn; KeyError where a row lacks it."""

from collections.abc import Callable, Sequence
from typing import Any

Row = dict[str, Any]


def own_seconds(row: Row) -> float:
    """The headline's median."""
    return row["seconds"][row["headline"]]["p50"]


def microseconds(row: Row) -> float:
    """The headline's median."""
    return own_seconds(row) * 1e6


def share(mode: str | None = None) -> Callable[[Row], float | None]:
    """The share of the ceiling, in a mode or in the headline's; None where the ceiling is not trusted."""
    return lambda row: row["ceilings"][mode]["share"] if mode else row["share_of_ceiling"]


def times(peer: str, mode: str | None = None) -> Callable[[Row], float]:
    """How many times longer a peer takes."""

    def figure(row: Row) -> float:
        ratios = row["peers"][peer]["ratios"]
        return ratios[mode if mode in ratios else row["headline"]]  # slow peers are timed cold only

    return figure


def over(peer: str, mode: str | None = None, part: float = 1.0) -> Callable[[Row], float]:
    """The time over `part` of a peer's."""
    return lambda row: 1 / times(peer, mode)(row) / part


def timed(figures: dict[str, Any], *benches: str) -> list[Row]:
    """Rows with a time."""
    return [row for row in figures["rows"] if "seconds" in row and row["bench"] in benches]


def floors(rows: list[Row]) -> list[float]:
    """Milliseconds that bytes or operations take at the machine's rates; NaN where the ceiling is not trusted."""
    return [float("nan") if row["floor_seconds"] is None else row["floor_seconds"] * 1e3 for row in rows]


def plain(axes: Any, numbers: Sequence[float]) -> None:
    """Ticks at these numbers, written out, instead of powers of ten that run into each other."""
    if numbers:
        axes.set_xticks(numbers, [f"{number:,}" for number in numbers])
    axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    low, high = axes.get_ylim()
    if axes.get_yscale() == "log" and high < 100 * low:
        axes.yaxis.get_major_locator().set_params(subs=(1, 2, 5))
