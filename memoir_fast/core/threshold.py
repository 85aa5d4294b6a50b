"""Chooses the threshold tau for a stated rate of false matches.

An irrelevant prompt is compared with every stored edit, and what decides is the best of N overlaps. Such a maximum
follows, nearly, a Gumbel distribution whose place moves up with log N. It is fitted to the best overlaps of background
prompts by their 10 % and 90 % quantiles, which a few prompts that are relevant after all cannot bend, and read at the
stated rate, far beyond what so few prompts could show by counting.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch

from memoir_fast.core.background import features, irrelevant_prompts
from memoir_fast.core.calibration import Calibration, gumbel
from memoir_fast.core.edited_model import EditedModel
from memoir_fast.core.routing_code import THRESHOLD, asked_by, prompt_codes
from memoir_fast.modules.code_store import least_of_named

FIRST = 16
"""Edits at which tau="auto" is chosen first; with fewer there is no maximum to speak of."""
GROWTH = 1.25
"""A threshold is chosen so that it holds until the store has grown so much."""

_AUTOMATIC_RATE = 1e-3
_COUNTED = 10  # with at least so many false matches expected among the prompts, they are counted instead
_LEAST_PROMPTS = 20
_PROBES = 32  # stored edits whose rewordings must still match
_LEAST_MATCHED = 0.9
_AT_ONCE = 64  # prompts that are searched together


def calibrate(
    memoir: EditedModel,
    masks: torch.Tensor,
    false_match_rate: float = 1e-3,
    *,
    holds_until: int | None = None,
    probe: bool = True,
    least: float = 0.0,
) -> Calibration:
    """Chooses tau for the edits that the memory holds; changes nothing.

    Args:
        memoir (Memoir): at least one edit.
        masks (Tensor): int32 [M, W], the masks of M >= 20 irrelevant prompts; see `prompt_masks`.
        false_match_rate (float): the share of irrelevant prompts that may match, in (0, 0.5]. Default: 1e-3.
        holds_until (int, optional): the number of edits to choose tau for. Default: those that there are.
        probe (bool): see whether prompts of stored edits, slightly reworded, still match, and warn where they do not:
            then no threshold tells paraphrases and irrelevant prompts apart. Default: True.
        least (float): tau is not less. Default: 0.

    Raises:
        ValueError: no edits, too few prompts, or a rate out of range.
    """
    if not 0 < false_match_rate <= 0.5:
        raise ValueError(f"false_match_rate must lie in (0, 0.5], got {false_match_rate}")
    if len(masks) < _LEAST_PROMPTS:
        raise ValueError(f"calibration needs at least {_LEAST_PROMPTS} irrelevant prompts, got {len(masks)}")
    store = memoir.layer.searched
    edits = len(memoir.layer.store.live)
    if not edits:
        raise ValueError("calibration needs at least one edit, the memory holds none")
    k = store.k
    overlap = store.overlaps(masks)
    best = overlap.amax(dim=1).double() / k
    location, scale = gumbel(best)
    drift = 0.0
    if overlap.shape[1] > 1:
        halves = [gumbel(overlap[:, start::2].amax(dim=1).double() / k)[0] for start in (0, 1)]
        drift = max(0.0, location - sum(halves) / 2)
    until = max(holds_until or 0, edits)
    counted = len(best) * false_match_rate >= _COUNTED
    if counted:
        tau = float(best.quantile(1 - false_match_rate))
    else:
        tau = location - scale * math.log(-math.log1p(-false_match_rate))
    tau = (math.floor((tau + drift * math.log2(until / edits)) * k) + 1) / k  # the next overlap above
    tau = min(max(tau, least, 1 / k), 1.0)
    matched = rewordings_matched(memoir, tau) if probe else None
    return Calibration(tau, false_match_rate, edits, until, len(masks), location, scale, drift, counted, matched)


def choose(
    memoir: EditedModel,
    false_match_rate: float,
    prompts: Sequence[str] | None = None,
    *,
    holds_until: int | None = None,
    probe: bool = True,
) -> Calibration:
    """Calibrates, and puts the threshold in force. Default prompts: those of the latest calibration.

    With routing codes, thresholds of rows that one of the prompts would still match are raised, where there is room;
    and only prompts that are given here can bring tau below `THRESHOLD`: those of the package are what the code was
    made of, and lie farther from all edits than others do.
    """
    least = THRESHOLD if memoir.layer.codes is not None and prompts is None else 0.0
    masks = memoir.background
    if masks is None or prompts is not None:
        masks = prompt_masks(memoir, prompts)
    found = calibrate(memoir, masks, false_match_rate, holds_until=holds_until, probe=probe, least=least)
    with memoir.layer.changing():
        memoir.layer.tau = found.tau
        if memoir.layer.codes is not None:
            memoir.layer.codes.raise_where(masks)
    memoir.calibration, memoir.background = found, masks
    return found


def prepare(memoir: EditedModel) -> None:
    """Before an edit is written: runs what `following` would have to run through the model while others wait."""
    if memoir.config.tau == "auto" and memoir.background is None and len(memoir.edits) + 1 >= FIRST:
        memoir.background = prompt_masks(memoir)


@contextmanager
def following(memoir: EditedModel) -> Iterator[None]:
    """As an edit is written: a new threshold is in force where tau is "auto" and its time has come.

    Where the block raises, all thresholds are as before.
    """
    if memoir.config.tau != "auto" or not due(memoir):
        yield
        return
    last = memoir.calibration
    with or_as_before(memoir):
        rate = last.false_match_rate if last else _AUTOMATIC_RATE
        choose(memoir, rate, holds_until=round(GROWTH * len(memoir.edits)), probe=False)
        yield


@contextmanager
def or_as_before(memoir: EditedModel) -> Iterator[None]:
    """Where the block raises, tau, each row's threshold, and how they were chosen are as before."""
    layer, store = memoir.layer, memoir.layer.searched
    chosen, tau, rows = (memoir.calibration, memoir.background), memoir.tau, store.min_overlap[: len(store)].clone()
    try:
        yield
    except BaseException:
        with layer.changing():
            layer.tau = tau
            store.min_overlap[: len(rows)] = rows
            memoir.calibration, memoir.background = chosen
        raise


def finish(memoir: EditedModel, last: Calibration | None) -> None:
    """After an edit was written: notes what share of rewordings pass the first threshold that was chosen by itself.

    Args:
        last (Calibration, optional): what was in force before the edit.
    """
    if last is None and memoir.calibration is not None:
        with memoir.layer.learning():
            matched = rewordings_matched(memoir, memoir.tau)
            memoir.calibration = replace(memoir.calibration, rewordings_matched=matched)


def due(memoir: EditedModel) -> bool:
    """Whether tau="auto" is to be chosen now: for the first time, or because the store has outgrown the last choice."""
    last, edits = memoir.calibration, len(memoir.edits)
    return edits >= FIRST and (last is None or edits > last.holds_until)


def prompt_masks(memoir: EditedModel, prompts: Sequence[str] | None = None) -> torch.Tensor:
    """Masks int32 [M, W] of prompts; by default of the package's own irrelevant ones.

    With routing codes: these, of what is asked in all of each prompt.
    """
    chosen = list(irrelevant_prompts() if prompts is None else prompts)
    if memoir.layer.code is not None:
        return prompt_codes(memoir.model, memoir.layer, memoir.tokenizer, memoir.layer.code, chosen)[:, 0].contiguous()
    mu = memoir.layer.mu
    means = features(memoir.model, memoir.layer, memoir.tokenizer, chosen, torch.zeros_like(mu))
    return memoir.layer.hash_mean(means)[0]


def matched(memoir: EditedModel, prompts: Sequence[str]) -> list[bool]:
    """Per prompt, whether it follows an edit that is in no bank."""
    layer = memoir.layer
    if layer.code is None:
        return (layer.search(prompt_masks(memoir, prompts))[0] >= 0).tolist()
    found: list[bool] = []
    for start in range(0, len(prompts), _AT_ONCE):  # their words are a bit for each token of the vocabulary
        asked = asked_by(memoir.model, layer, memoir.tokenizer, layer.code, prompts[start : start + _AT_ONCE])
        found += (layer.search(asked.codes, None, asked.words)[0] >= 0).tolist()
    return found


def best_overlaps(memoir: EditedModel, prompts: Sequence[str]) -> list[float]:
    """Per prompt, its best overlap ratio with a live edit; 0.0 where there is none."""
    return overlap_ratios(memoir, prompt_masks(memoir, prompts))


def overlap_ratios(memoir: EditedModel, masks: torch.Tensor) -> list[float]:
    """As `best_overlaps`, of masks int32 [M, W]."""
    store = memoir.layer.searched
    return (store.best_overlap(masks).double() / store.k).tolist()


def rewordings_matched(memoir: EditedModel, tau: float) -> float:
    """Share of reworded prompts of stored edits that reach tau, with a subject its share; warns where it is small."""
    edits = list(memoir.edits.values())
    chosen = edits[:: max(1, len(edits) // _PROBES)][:_PROBES]
    overlaps = best_overlaps(memoir, [_reworded(edit.prompt) for edit in chosen])
    lower = (
        tau if memoir.layer.codes is None else least_of_named(round(tau * memoir.layer.codes.k)) / memoir.layer.codes.k
    )
    needed = [lower if edit.subject else tau for edit in chosen]
    matched = sum(overlap >= least for overlap, least in zip(overlaps, needed, strict=True)) / len(overlaps)
    if matched < _LEAST_MATCHED:
        warnings.warn(
            f"paraphrases and irrelevant prompts can hardly be told apart: at tau = {tau:.3f} only {matched:.0%} of "
            "stored prompts match when they are reworded slightly; another layer or another k may serve better",
            stacklevel=4,
        )
    return matched


def _reworded(prompt: str) -> str:
    """The prompt as another might type it."""
    return f"Please tell me: {prompt[:1].lower()}{prompt[1:]}"
