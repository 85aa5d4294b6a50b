"""Reliability, generalization and locality, by teacher forcing.

Prompt, a space and the answer go through the model in one pass; the route is decided on the prompt's tokens alone. An
item's score is a share of its answer's tokens, and a figure is the mean over items:

* reliability: tokens of the target that the arg-max gets right, on the edits' own prompts;
* generalization: the same on paraphrases;
* locality: arg-max tokens that are those of the unedited model, right or wrong, on unrelated prompts.

Source: the "token em" and neighborhood measures of EasyEdit, with which MEMOIR's published numbers were made.
"""

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from memoir_fast.editing.request import context_length, pad, padding_id, row
from memoir_fast.presets import device_of
from memoir_fast.routing import Route

if TYPE_CHECKING:
    from memoir_fast.memoir import Memoir


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


@torch.no_grad()
def teacher_forced(memoir: "Memoir", pairs: Sequence[tuple[str, str]], batch: int = 8) -> list[Forced]:
    """Runs (prompt, answer) pairs through the model, `batch` at a time, padded on the right.

    Raises:
        ValueError: an answer without tokens, or a pair longer than the model's context.
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    model, tokenizer = memoir.model, memoir.tokenizer
    longest = context_length(model)
    rows = [row(tokenizer, prompt, answer, longest) for prompt, answer in pairs]
    can_keep = "logits_to_keep" in inspect.signature(model.forward).parameters
    items = []
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        input_ids, mask, labels = pad(part, padding_id(tokenizer), device_of(model))
        first = min(one.prompt for one in part) - 1  # the earliest position that predicts an answer's token
        options = {"logits_to_keep": input_ids.shape[1] - first} if can_keep else {}
        with memoir.prompts([one.prompt for one in part]):
            logits = model(input_ids=input_ids, attention_mask=mask, use_cache=False, **options).logits
        predicted = (logits if can_keep else logits[:, first:]).argmax(dim=-1)[:, :-1].cpu()
        answers = labels[:, first + 1 :].cpu()
        for index, route in enumerate(memoir.last_routes):
            marked = answers[index] != -100
            items.append(Forced(answers[index][marked].tolist(), predicted[index][marked].tolist(), route))
    return items


def target_accuracy(memoir: "Memoir", pairs: Sequence[tuple[str, str]], batch: int = 8) -> list[float]:
    """Per (prompt, target): share of the target's tokens whose arg-max is right.

    Reliability is the mean over the edits' own prompts, generalization that over their paraphrases.

    Example:
        >>> target_accuracy(memoir, [("The capital of France is", "Lyon")])  # doctest: +SKIP
        [1.0]
    """
    return [item.accuracy for item in teacher_forced(memoir, pairs, batch)]


def locality(memoir: "Memoir", pairs: Sequence[tuple[str, str]], batch: int = 8) -> list[float]:
    """Per (prompt, answer): share of the answer's tokens whose arg-max is the one that the unedited model has there."""
    with memoir.disabled():
        before = teacher_forced(memoir, pairs, batch)
    after = teacher_forced(memoir, pairs, batch)
    return [agreement(new.predicted, old.predicted) for new, old in zip(after, before, strict=True)]
