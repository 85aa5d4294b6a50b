"""How likely a model finds a text: perplexity of answers and of running text, and WISE's out-of-distribution score."""

import math
from collections.abc import Sequence
from statistics import fmean, median
from typing import NamedTuple

import torch

from memoir_fast.core.edited_model import EditedModel
from memoir_fast.core.scoring import forced_logits
from memoir_fast.hf.presets import device_of
from memoir_fast.hf.routing import Route
from memoir_fast.hf.tokens import Row as TokenRow
from memoir_fast.hf.tokens import context_length, pad, padding_id, prompt_ids

CLIP = 100.0
LIKELY = 0.8


class Summary(NamedTuple):
    """Perplexities of many answers in three figures, of which the mean is what outliers make it."""

    mean: float
    median: float
    clipped: float
    """Mean after each is cut off at CLIP."""


def log_likelihoods(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Logits [T, V], token ids int64 [T] -> log probability of each token, float64 [T] on the CPU."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1)
    return wide.gather(1, target.to(wide.device)[:, None])[:, 0].double().cpu()


def perplexities(memoir: EditedModel, pairs: Sequence[tuple[str, str]], batch: int = 8) -> list[float]:
    """Per (prompt, answer): exp of the mean negative log probability of the answer's tokens, teacher-forced."""
    found = {
        one.place: math.exp(min(-float(log_likelihoods(one.logits, one.target).mean()), 700.0))
        for one in forced_logits(memoir, pairs, batch)
    }
    return [found[index] for index in range(len(pairs))]


def summarised(values: Sequence[float]) -> Summary:
    """Mean, median and clipped mean of at least one perplexity.

    Example:
        >>> summarised([2.0, 4.0, 1000.0])
        Summary(mean=335.3333333333333, median=4.0, clipped=35.333333333333336)
    """
    return Summary(fmean(values), median(values), fmean(min(value, CLIP) for value in values))


@torch.no_grad()
def likely_shares(memoir: EditedModel, texts: Sequence[str], batch: int = 8) -> list[tuple[float, Route]]:
    """Per text of two tokens or more: the share of its tokens, but for the first, with probability above LIKELY.

    All of the text is the prompt that decides its route. A text longer than the model's context is cut.
    """
    model, tokenizer = memoir.model, memoir.tokenizer
    longest = context_length(model)
    ids = [prompt_ids(tokenizer, text)[:longest] for text in texts]
    if any(len(one) < 2 for one in ids):
        raise ValueError("a text must have at least two tokens")
    found: list[tuple[float, Route]] = []
    for start in range(0, len(ids), batch):
        part = [TokenRow(one, len(one)) for one in ids[start : start + batch]]
        input_ids, mask, _ = pad(part, padding_id(tokenizer), device_of(model))
        logits = model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits
        for row, one, route in zip(logits, part, memoir.last_routes, strict=True):
            known = log_likelihoods(row[: len(one.ids) - 1], torch.tensor(one.ids[1:]))
            found.append((float((known > math.log(LIKELY)).double().mean()), route))
    return found


@torch.no_grad()
def text_perplexity(memoir: EditedModel, text: str, window: int = 256, windows: int = 32) -> float:
    """exp of the mean negative log probability of the tokens of the first `windows` windows of a text.

    Windows do not overlap, and each starts anew; its first token is not predicted.
    """
    ids = prompt_ids(memoir.tokenizer, text)
    parts = [ids[start : start + window] for start in range(0, min(len(ids), window * windows), window)]
    known = []
    for part in parts:
        if len(part) < 2:
            continue
        row = torch.tensor([part], device=device_of(memoir.model))
        logits = memoir.model(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False).logits[0]
        known.append(log_likelihoods(logits[:-1], torch.tensor(part[1:])))
    if not known:
        raise ValueError("the text must have at least two tokens")
    return math.exp(-float(torch.cat(known).mean()))
