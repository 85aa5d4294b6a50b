"""The figures of an evaluation as rows of text."""

from collections.abc import Iterator
from typing import Any

_SHARES = {
    "reliability": "Rel",
    "generalization": "Gen",
    "locality": "Loc",
    "average": "Avg",
    "portability": "Port",
    "portability_before": "Port before",
    "paraphrases_routed": "Para routed",
    "neighbours_matched": "Nbr matched",
    "neighbours_unchanged": "Nbr same",
    "exact_match": "EM",
    "f1": "F1",
    "paraphrase_exact_match": "EM para",
    "ood": "OOD",
}
COLUMNS = (*_SHARES.values(), "PPL mean", "median", "<= 100", "cases", "s / edit")


def rows(result: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """(name, cells) for the edited model and each baseline, on all rows and on those without conflict."""
    yield "edited", cells(result["all_rows"], result["seconds_per_edit"])
    if result["conflicts"] and result["conflict_free"]:
        yield "edited, conflict-free", cells(result["conflict_free"])
    if result["at_end"]:
        yield "edited, after the last edit", cells(result["at_end"])
    for name, figures in result["baselines"].items():
        yield name, cells(figures, figures.get("seconds_per_edit"))
        if result["conflicts"] and figures["conflict_free"]:
            yield f"{name}, conflict-free", cells(figures["conflict_free"])


def used(lines: list[tuple[str, list[str]]]) -> list[int]:
    """Places of the columns that are not empty throughout."""
    return [index for index in range(len(COLUMNS)) if any(row[index] != "-" for _, row in lines)]


def cells(figures: dict[str, Any], seconds: float | None = None) -> list[str]:
    """One row, a cell per column; a dash for what was not measured."""
    perplexity = figures["perplexity"] or {}
    return [
        *(_text(figures[name], ".3f") for name in _SHARES),
        *(_text(perplexity.get(name), ".2f") for name in ("mean", "median", "clipped")),
        str(figures["cases"]),
        _text(seconds, ".2f"),
    ]


def markdown(result: dict[str, Any]) -> str:
    """The table in Markdown, without columns that are empty throughout."""
    lines = list(rows(result))
    kept = used(lines)
    head = [f"| | {' | '.join(COLUMNS[index] for index in kept)} |", "| --- |" + " ---: |" * len(kept)]
    return "\n".join([*head, *(f"| {name} | {' | '.join(row[index] for index in kept)} |" for name, row in lines)])


def _text(value: float | None, style: str) -> str:
    return "-" if value is None else format(value, style)
