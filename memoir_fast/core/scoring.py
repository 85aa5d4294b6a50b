"""Reliability, generalization and locality, by teacher forcing.

Prompt and answer, joined as an `Edit`'s are, go through the model in one pass; the route is decided on the prompt's
tokens alone. An item's score is a share of its answer's tokens, and a figure is the mean over items:

* reliability: tokens of the target that the arg-max gets right, on the edits' own prompts;
* generalization: the same on paraphrases;
* locality: arg-max tokens that are those of the unedited model, right or wrong, on unrelated prompts.

Source: the "token em" and neighborhood measures of EasyEdit, with which MEMOIR's published numbers were made.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from tqdm.auto import tqdm

from memoir_fast.core.edited_model import EditedModel
from memoir_fast.hf.own_pass import uncompiled
from memoir_fast.hf.presets import device_of
from memoir_fast.hf.routing import Route
from memoir_fast.hf.tokens import context_length, pad, padding_id, row


class Forced(NamedTuple):
    """One teacher-forced item: the answer's token ids, the model's arg-max at each of them, and its prompt's route."""

    target: list[int]
    predicted: list[int]
    route: Route

    @property
    def accuracy(self) -> float:
        """Share of the answer's tokens that the model predicts."""
        return agreement(self.predicted, self.target)


def agreement(first: Sequence[int], second: Sequence[int]) -> float:
    """Share of equal places of two sequences of the same length, at least 1."""
    if len(first) != len(second) or not first:
        raise ValueError(f"two sequences of one length, at least 1, were expected, got {len(first)} and {len(second)}")
    return sum(one == other for one, other in zip(first, second, strict=True)) / len(first)


class Answered(NamedTuple):
    """One pair after a forward pass of prompt and answer."""

    place: int
    """Its place among the pairs."""
    target: torch.Tensor
    """The answer's token ids, int64 [T], on the CPU."""
    logits: torch.Tensor
    """What the model predicts at each of them, [T, V], on the model's device."""
    route: Route


@torch.no_grad()
def forced_logits(
    memoir: EditedModel, pairs: Sequence[tuple[str, str]], batch: int = 8, banks: Sequence[str] | None = None
) -> Iterator[Answered]:
    """Runs (prompt, answer) pairs through the model, `batch` of like length at a time, padded on the right.

    They come in another order than they were given in; `place` tells. `banks`: the bank that each pair is asked in.

    Raises:
        ValueError: an answer without tokens, or a pair longer than the model's context.
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    model, tokenizer = memoir.model, memoir.tokenizer
    longest = context_length(model)
    rows = [row(tokenizer, prompt, answer, longest) for prompt, answer in pairs]
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].ids))
    can_keep = "logits_to_keep" in inspect.signature(model.forward).parameters
    for start in range(0, len(rows), batch):
        chosen = order[start : start + batch]
        part = [rows[index] for index in chosen]
        input_ids, mask, labels = pad(part, padding_id(tokenizer), device_of(model))
        first = min(one.prompt for one in part) - 1  # the earliest position that predicts an answer's token
        options = {"logits_to_keep": input_ids.shape[1] - first} if can_keep else {}
        asked = nullcontext() if banks is None else memoir.banks([banks[index] for index in chosen])
        with uncompiled(model.modules()), memoir.prompts([one.prompt for one in part]), asked:
            logits = model(input_ids=input_ids, attention_mask=mask, use_cache=False, **options).logits
        logits = logits if can_keep else logits[:, first:]
        answers = labels[:, first + 1 :].cpu()
        for index, (place, route) in enumerate(zip(chosen, memoir.last_routes, strict=True)):
            at = (answers[index] != -100).nonzero().flatten()
            yield Answered(place, answers[index][at], logits[index, at.to(logits.device)], route)


def teacher_forced(
    memoir: EditedModel,
    pairs: Sequence[tuple[str, str]],
    batch: int = 8,
    banks: Sequence[str] | None = None,
    progress: bool = False,
) -> list[Forced]:
    """The arg-max at each of the answers' tokens, in the order of the pairs; see `forced_logits`.

    With `progress`, a progress bar is shown where there are any.
    """
    found = forced_logits(memoir, pairs, batch, banks)
    items = {
        one.place: Forced(one.target.tolist(), one.logits.argmax(dim=-1).tolist(), one.route)
        for one in tqdm(found, total=len(pairs), desc="looking", unit="edit", disable=not progress or not pairs)
    }
    return [items[index] for index in range(len(pairs))]


def target_accuracy(memoir: EditedModel, pairs: Sequence[tuple[str, str]], batch: int = 8) -> list[float]:
    """Per (prompt, target): share of the target's tokens whose arg-max is right.

    Reliability is the mean over the edits' own prompts, generalization that over their paraphrases.

    Example:
        >>> result = memoir.edit("The capital of France is", "Lyon")
        >>> target_accuracy(memoir, [("The capital of France is", "Lyon")])
        [1.0]
    """
    return [item.accuracy for item in teacher_forced(memoir, pairs, batch)]


def locality(memoir: EditedModel, pairs: Sequence[tuple[str, str]], batch: int = 8) -> list[float]:
    """Per (prompt, answer): share of the answer's tokens whose arg-max is the one that the unedited model has there."""
    with memoir.disabled():
        before = teacher_forced(memoir, pairs, batch)
    after = teacher_forced(memoir, pairs, batch)
    return [agreement(new.predicted, old.predicted) for new, old in zip(after, before, strict=True)]
