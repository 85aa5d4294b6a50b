"""What is measured of every case, and the figures made of it."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

from memoir_fast.core.edited_model import EditedModel
from memoir_fast.core.scoring import Forced, agreement, teacher_forced
from memoir_fast.evaluation.answers import exact_match, f1, free_answers
from memoir_fast.evaluation.likelihood import likely_shares, perplexities, summarised
from memoir_fast.io.fields import Pair
from memoir_fast.io.readers import Case


@dataclass
class Measured:
    """One case. A share is None where the file has nothing to measure it on; lists have an entry per prompt."""

    row: int
    edit_id: int | None
    """The id that its prompt is stored under; None where it is not stored."""
    reliability: float
    generalization: float | None
    locality: float | None
    portability: float | None
    overlap: float | None
    """Best overlap ratio of the edit's own prompt."""
    route: int
    paraphrase_overlaps: list[float] = field(default_factory=list)
    paraphrase_routes: list[int] = field(default_factory=list)
    locality_overlaps: list[float] = field(default_factory=list)
    locality_routes: list[int] = field(default_factory=list)
    portability_before: float | None = None
    """Portability of the unedited model: what the edits did not bring about."""
    paraphrases_routed: float | None = None
    """Share of the paraphrases that are routed to the case's own edit; None where that is not stored."""
    neighbours_matched: float | None = None
    """Share of the neighbours that are routed to an edit, whichever it is."""
    neighbours_unchanged: float | None = None
    """Locality of the neighbours alone."""
    exact_match: float | None = None
    f1: float | None = None
    paraphrase_exact_match: float | None = None
    paraphrase_f1: float | None = None
    perplexity: float | None = None
    ood: float | None = None


@dataclass
class Unedited:
    """What the model says of one case without its memory."""

    predictions: list[list[int]] = field(default_factory=list)
    """Per pair of the case's locality, the token ids that it predicts."""
    portability: float | None = None
    """As `Measured.portability`."""


def measure(
    memoir: EditedModel,
    cases: Sequence[Case],
    unedited: Sequence[Unedited],
    *,
    batch: int = 8,
    free: bool = False,
    likelihood: bool = False,
) -> list[Measured]:
    """Measures each case on the model as it is now, all of one kind in the same batches.

    Args:
        memoir (EditedModel): the model.
        cases (sequence of Case): what to measure.
        unedited (sequence of Unedited): per case, what the unedited model says; see `without_memory`.
        batch (int): texts per forward pass. Default: 8.
        free (bool): let it answer freely too. Default: False.
        likelihood (bool): perplexity of the targets and, where a case has one, the out-of-distribution score.
            Default: False.

    Raises:
        ValueError: a case has a neighbour that is not among its locality, or another locality than `unedited` is of.
    """
    own = teacher_forced(memoir, [(case.prompt, case.target) for case in cases], batch)
    again = _grouped(memoir, cases, lambda case: tuple((text, case.target) for text in case.paraphrases), batch)
    aside = _grouped(memoir, cases, lambda case: case.locality, batch)
    further = _grouped(memoir, cases, lambda case: case.portability, batch)
    ids = {edit.prompt: edit_id for edit_id, edit in memoir.edits.items()}
    same = [
        [agreement(item.predicted, old) for item, old in zip(items, before.predictions, strict=True)]
        for items, before in zip(aside, unedited, strict=True)
    ]
    near = [[case.locality.index(pair) for pair in case.neighbours] for case in cases]
    found = [
        Measured(
            row=case.row,
            edit_id=ids.get(case.prompt),
            reliability=own[index].accuracy,
            generalization=_mean([item.accuracy for item in again[index]]),
            locality=_mean(same[index]),
            portability=_mean([item.accuracy for item in further[index]]),
            overlap=own[index].route.overlap,
            route=own[index].route.edit_id,
            paraphrase_overlaps=_overlaps(again[index]),
            paraphrase_routes=[item.route.edit_id for item in again[index]],
            locality_overlaps=_overlaps(aside[index]),
            locality_routes=[item.route.edit_id for item in aside[index]],
            portability_before=unedited[index].portability,
            paraphrases_routed=_routed(again[index], ids.get(case.prompt)),
            neighbours_matched=_mean([float(aside[index][at].route.edit_id >= 0) for at in near[index]]),
            neighbours_unchanged=_mean([same[index][at] for at in near[index]]),
        )
        for index, case in enumerate(cases)
    ]
    if free:
        _answer_freely(memoir, cases, found, batch)
    if likelihood:
        values = perplexities(memoir, [(case.prompt, case.target) for case in cases], batch)
        for one, value in zip(found, values, strict=True):
            one.perplexity = value
        texts = [(one, case.ood) for one, case in zip(found, cases, strict=True) if case.ood]
        shares = likely_shares(memoir, [text for _, text in texts], batch)
        for (one, _), (share, _) in zip(texts, shares, strict=True):
            one.ood = share
    return found


def without_memory(memoir: EditedModel, cases: Sequence[Case], batch: int = 8) -> list[Unedited]:
    """Per case, what the model says without its memory; the edits that it holds do not matter."""
    with memoir.disabled():
        aside = _grouped(memoir, cases, lambda case: case.locality, batch)
        further = _grouped(memoir, cases, lambda case: case.portability, batch)
    return [
        Unedited([item.predicted for item in items], _mean([item.accuracy for item in follow]))
        for items, follow in zip(aside, further, strict=True)
    ]


def figures(measured: Sequence[Measured]) -> dict[str, Any]:
    """Means over cases; None where no case has the measure.

    `average` is the mean of those of reliability, generalization and locality that there are. `false_matches` counts
    the locality prompts that were routed to an edit.
    """
    shares = {name: _mean_of(measured, name) for name in _SHARES}
    three = [shares[name] for name in ("reliability", "generalization", "locality") if shares[name] is not None]
    known = [one.perplexity for one in measured if one.perplexity is not None]
    return {
        "cases": len(measured),
        **shares,
        "average": _mean([share for share in three if share is not None]),
        **{name: _mean_of(measured, name) for name in _FREE},
        "perplexity": summarised(known)._asdict() if known else None,
        "ood": _mean_of(measured, "ood"),
        "paraphrases_matched": _mean([float(route >= 0) for one in measured for route in one.paraphrase_routes]),
        **{name: _mean_of(measured, name) for name in _ROUTED},
        "false_matches": sum(route >= 0 for one in measured for route in one.locality_routes),
        "irrelevant": sum(len(one.locality_routes) for one in measured),
    }


_SHARES = ("reliability", "generalization", "locality", "portability", "portability_before")
_ROUTED = ("paraphrases_routed", "neighbours_matched", "neighbours_unchanged")
_FREE = ("exact_match", "f1", "paraphrase_exact_match", "paraphrase_f1")


def to_json(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """Plain values."""
    return [asdict(one) for one in measured]


def from_json(values: Sequence[dict[str, Any]]) -> list[Measured]:
    """The inverse of `to_json`."""
    return [Measured(**one) for one in values]


def _answer_freely(memoir: EditedModel, cases: Sequence[Case], found: Sequence[Measured], batch: int) -> None:
    own = free_answers(memoir, [(case.prompt, case.target) for case in cases], batch)
    wordings = [(index, (text, case.target)) for index, case in enumerate(cases) for text in case.paraphrases]
    again = free_answers(memoir, [pair for _, pair in wordings], batch)
    for index, (case, one) in enumerate(zip(cases, found, strict=True)):
        one.exact_match, one.f1 = exact_match(own[index], case.target), f1(own[index], case.target)
        said = [text for (owner, _), text in zip(wordings, again, strict=True) if owner == index]
        one.paraphrase_exact_match = _mean([exact_match(text, case.target) for text in said])
        one.paraphrase_f1 = _mean([f1(text, case.target) for text in said])


def _grouped(
    memoir: EditedModel, cases: Sequence[Case], pairs_of: Callable[[Case], tuple[Pair, ...]], batch: int
) -> list[list[Forced]]:
    """Per case, its pairs after a teacher-forced pass."""
    groups = [pairs_of(case) for case in cases]
    items = iter(teacher_forced(memoir, [pair for group in groups for pair in group], batch))
    return [[next(items) for _ in group] for group in groups]


def _routed(items: Sequence[Forced], own: int | None) -> float | None:
    return None if own is None else _mean([float(item.route.edit_id == own) for item in items])


def _overlaps(items: Sequence[Forced]) -> list[float]:
    return [item.route.overlap for item in items if item.route.overlap is not None]


def _mean_of(measured: Sequence[Measured], name: str) -> float | None:
    return _mean([getattr(one, name) for one in measured if getattr(one, name) is not None])


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
