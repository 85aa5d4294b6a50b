"""Rows of a file that contradict each other."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from memoir_fast.io.readers import Case

_PASSAGE = 8  # words; a target of more is a passage


@dataclass(frozen=True)
class Conflict:
    """Rows that cannot all be satisfied, or teach one prompt twice."""

    reason: str
    rows: tuple[int, ...]


def conflicts(cases: Iterable[Case]) -> list[Conflict]:
    """Groups of rows with the same prompt, or with the same subject and different targets.

    Case and white space do not count. Rows whose files give different true answers speak of different facts and are no
    conflict. Where targets are passages (more than 8 words) several of them may be about one subject: only their
    prompts are compared.
    """
    prompts: dict[str, list[Case]] = defaultdict(list)
    facts: dict[tuple[str, str], list[Case]] = defaultdict(list)
    for case in cases:
        prompts[_plain(case.prompt)].append(case)
        if case.subject and len(case.target.split()) <= _PASSAGE:
            facts[_plain(case.subject), _plain(case.truth or "")].append(case)
    found = [
        Conflict("the same prompt twice", tuple(case.row for case in group))
        for group in prompts.values()
        if len(group) > 1
    ]
    return found + [
        Conflict("one subject, different targets", tuple(case.row for case in group))
        for group in facts.values()
        if len({_plain(case.target) for case in group}) > 1
    ]


def conflicting_rows(found: Sequence[Conflict]) -> set[int]:
    """Numbers of all rows in some conflict."""
    return {row for conflict in found for row in conflict.rows}


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
