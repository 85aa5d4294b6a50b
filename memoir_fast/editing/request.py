"""`Edit`: what a user asks for; and the token rows that it is learned from."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch


@dataclass(frozen=True)
class Edit:
    """One correction: after `prompt`, the model shall say `target`.

    Example:
        >>> from memoir_fast import Edit
        >>> Edit("The capital of France is", "Lyon").target
        'Lyon'
    """

    prompt: str
    target: str

    def __post_init__(self) -> None:
        for name in ("prompt", "target"):
            text = getattr(self, name)
            if not isinstance(text, str):
                raise TypeError(f"an edit's {name} must be a string, got {type(text).__name__}")
            if not text.strip():
                raise ValueError(f"an edit's {name} must not be empty, got {text!r}")


class Row(NamedTuple):
    """One text as token ids [S], of which the first `prompt` belong to the prompt."""

    ids: list[int]
    prompt: int


def prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    """Token ids of a prompt, special tokens as the tokenizer adds them. ValueError where there are none."""
    ids = tokenizer(prompt).input_ids
    if not ids:
        raise ValueError(f"the prompt {prompt!r} has no tokens")
    return ids


def row(tokenizer: Any, prompt: str, target: str, longest: int | None = None) -> Row:
    """The row of `prompt + ' ' + target`; what the prompt alone tokenises to is its prompt part.

    Raises:
        ValueError: where the target adds no token, or the row is longer than `longest`, the model's context.
    """
    prompt_length = len(prompt_ids(tokenizer, prompt))
    ids = tokenizer(f"{prompt} {target}").input_ids
    if ids and ids[-1] == getattr(tokenizer, "eos_token_id", None) and tokenizer(prompt).input_ids[-1] == ids[-1]:
        ids, prompt_length = ids[:-1], prompt_length - 1  # a tokenizer that closes every text with eos
    if len(ids) <= prompt_length:
        raise ValueError(f"the target {target!r} has no tokens after the prompt {prompt!r}")
    if longest is not None and len(ids) > longest:
        raise ValueError(
            f"prompt and target have {len(ids)} tokens, the model's context holds {longest}: {prompt[:60]!r}"
        )
    return Row(ids, prompt_length)


def context_length(model: Any) -> int | None:
    """The most tokens that the model takes, where its config says."""
    return getattr(model.config, "max_position_embeddings", None) or getattr(model.config, "n_positions", None)


def pad(rows: list[Row], fill: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows as a batch padded on the right, where padding can move no position.

    Returns:
        input_ids int64 [B, S], attention_mask int64 [B, S], labels int64 [B, S] (-100 outside of targets).
    """
    longest = max(len(row.ids) for row in rows)
    input_ids = torch.full((len(rows), longest), fill)
    labels = torch.full((len(rows), longest), -100)
    mask = torch.zeros((len(rows), longest), dtype=torch.int64)
    for index, (ids, prompt) in enumerate(rows):
        input_ids[index, : len(ids)] = torch.tensor(ids)
        labels[index, prompt : len(ids)] = input_ids[index, prompt : len(ids)]
        mask[index, : len(ids)] = 1
    return input_ids.to(device), mask.to(device), labels.to(device)


def padding_id(tokenizer: Any) -> int:
    """A token id to pad with: pad, else eos, else 0."""
    for name in ("pad_token_id", "eos_token_id"):
        if getattr(tokenizer, name, None) is not None:
            return getattr(tokenizer, name)
    return 0
