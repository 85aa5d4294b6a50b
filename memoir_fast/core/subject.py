"""An edit's subject as tokens, by which it is told whether a prompt names it."""

from typing import Any

import torch

from memoir_fast.hf.tokens import token_texts
from memoir_fast.modules.naming import SPELLINGS, TOKENS
from memoir_fast.modules.routing_code import RoutingCode

_BROKEN = "\ufffd"  # how a tokenizer writes a part of a character


def alike_tokens(tokenizer: Any, size: int) -> torch.Tensor:
    """Per token of a vocabulary, the first that reads the same but for case and white space around it, int64 [V]."""
    first: dict[str, int] = {}
    found = torch.arange(size)
    for number, text in enumerate(token_texts(tokenizer, size)):
        bare = text.strip().casefold()
        if bare and _BROKEN not in bare:
            found[number] = first.setdefault(bare, number)
    return found


def spellings(subject: str) -> list[str]:
    """How a text may write a subject: inside of a sentence, at its beginning or behind a quote, and in other cases.

    Example:
        >>> from memoir_fast.core.subject import spellings
        >>> spellings("femur"), spellings("New York")
        ([' femur', 'femur', 'Femur', ' FEMUR'], [' New York', 'New York', ' new york', ' NEW YORK'])
    """
    bare = subject.strip()
    return list(dict.fromkeys([f" {bare}", bare, f" {bare.lower()}", bare[:1].upper() + bare[1:], f" {bare.upper()}"]))


def names_of(tokenizer: Any, code: RoutingCode, subject: str) -> torch.Tensor:
    """The tokens of a subject in each of its spellings, by `RoutingCode.alike`: int32 [P, T], -1 behind them.

    Tokens that weigh nothing, such as blanks, are left out, and those without a letter or digit where others are left.
    Of more than T, those that weigh most.
    """
    names = torch.full((SPELLINGS, TOKENS), -1, dtype=torch.int32)
    weights, size = code.weights, len(code.weights)
    for place, text in enumerate(spellings(subject)):
        ids = [one for one in tokenizer(text, add_special_tokens=False).input_ids if one < size]
        heavy = dict(
            zip(ids, weights[torch.tensor(ids, dtype=torch.int64, device=weights.device)].tolist(), strict=True)
        )
        ids = [one for one in heavy if heavy[one] > 0]
        spoken = [one for one in ids if any(c.isalnum() or c == _BROKEN for c in tokenizer.decode([one]))]
        chosen = sorted(spoken or ids, key=lambda one: -heavy[one])[:TOKENS]
        own = code.alike[torch.tensor(chosen, dtype=torch.int64, device=code.alike.device)]
        names[place, : len(own)] = own.int().cpu()
    if not bool((names >= 0).any()):
        raise ValueError(f"no word of the subject means anything to the tokenizer: {subject!r}")
    return names
