"""The table of docs/support.md on quantised, offloaded and adapted models: what is checked, and how it is written."""

from typing import NamedTuple

from bases import BASES
from support_checks import FEATURES, RECIPE, TAU, Check

from memoir_fast import MemoirConfig
from memoir_fast.errors import UnsupportedModelError

BEGIN, END = "<!-- tools/support.py: bases, begin -->", "<!-- tools/support.py: bases, end -->"
HEAD = ("", "by", *FEATURES)


class BaseRow(NamedTuple):
    """What was found of a form of the model."""

    name: str
    attached: bool
    refused: str | None = None
    """The error; None: every feature works."""


def row(name: str) -> BaseRow:
    """Runs the checks of `support_checks.Check` on a form of the model; its package has to be there."""
    make = BASES[name].make
    check = Check(make(), "llama")
    try:
        check.run(MemoirConfig(recipe=RECIPE, tau=TAU), make)
    except UnsupportedModelError as error:
        return BaseRow(name, check.attached, f"{type(error).__name__}: {error}")
    return BaseRow(name, True)


def line(one: BaseRow) -> str:
    """A row of the table."""
    found = ["works"] * len(FEATURES)
    if one.refused is not None:
        done = int(one.attached)
        found = ["works"] * done + ["refused"] + ["-"] * (len(FEATURES) - 1 - done)
    return f"| {' | '.join([one.name, BASES[one.name].package, *found])} |"


def reason(one: BaseRow) -> str:
    """What a refused row is refused with."""
    return f"- {one.name}: `{one.refused}`"


def section(rows: list[BaseRow], page: str) -> str:
    """The text between the markers; of forms whose package is missing, what the page says already."""
    found, before = {one.name: one for one in rows}, page.splitlines()
    table, reasons = [f"| {' | '.join(HEAD)} |", f"|{' --- |' * len(HEAD)}"], []
    for name in BASES:
        if name in found:
            table.append(line(found[name]))
            reasons += [reason(found[name])] if found[name].refused is not None else []
        else:
            table += [one for one in before if one.startswith(f"| {name} |")]
            reasons += [one for one in before if one.startswith(f"- {name}: ")]
    return "\n".join([*table, "", "Refused with:", "", *reasons])
