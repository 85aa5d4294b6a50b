"""An edit's subject as tokens, by which it is told whether a prompt names it."""

import bisect
from collections.abc import Sequence
from typing import Any

import torch

from memoir_fast.hf.tokens import token_texts
from memoir_fast.modules.naming import SPELLINGS, TOKENS
from memoir_fast.modules.routing_code import RoutingCode

_BROKEN = "\ufffd"  # how a tokenizer writes a part of a character


def alike_tokens(tokenizer: Any, size: int) -> torch.Tensor:
    """Per token of a vocabulary, the first that reads the same but for case and white space around it, int64 [V]."""
    first: dict[str, int] = {}
    found = [*range(size)]
    for number, text in enumerate(token_texts(tokenizer, size)):
        bare = text.strip().casefold()
        if bare and _BROKEN not in bare:
            found[number] = first.setdefault(bare, number)
    return torch.tensor(found, dtype=torch.int64)


def spellings(subject: str) -> list[str]:
    """How a text may write a subject: inside of a sentence, at its beginning, behind a quote, and in other cases.

    The likeliest first. What stands behind a quote may have other tokens than at a text's beginning.

    Example:
        >>> from memoir_fast.core.subject import spellings
        >>> spellings("femur")
        [' femur', 'femur', '"femur', 'Femur', ' FEMUR']
        >>> spellings("New York")
        [' New York', 'New York', '"New York', ' new york', ' NEW YORK']
    """
    bare = subject.strip()
    first = bare[:1].upper() + bare[1:]
    written = [f" {bare}", bare, f'"{bare}', f" {bare.lower()}", first, f" {bare.upper()}"]
    return list(dict.fromkeys(written))[:SPELLINGS]


def names_of(tokenizer: Any, code: RoutingCode, subject: str, prompts: Sequence[Sequence[int]] = ()) -> torch.Tensor:
    """The tokens of a subject in each of its spellings, by `RoutingCode.alike`: int32 [P, T], -1 behind them.

    Tokens that weigh nothing, such as blanks, are left out, and those without a letter or digit where others are left.
    Of more than T, those that weigh most. A prompt may write the subject in other tokens: in a plural, in letters of
    both cases, in a script without spaces. So those in which it stands there are a spelling too.

    Args:
        tokenizer, code: the model's tokenizer, and how its routing codes are made.
        subject (str): in words.
        prompts (sequence of token ids): which shall name it.

    Raises:
        ValueError: no token of it weighs anything, or a prompt does not name it in what its user says last.
    """
    texts = [(text, tokenizer(text, add_special_tokens=False).input_ids) for text in spellings(subject)]
    found = dict.fromkeys(
        _meant(tokenizer, code, _where(tokenizer, ids, subject) if text[0] == '"' else ids) for text, ids in texts
    )
    known = [one for one in found if one]
    if not known:
        raise ValueError(f"no word of the subject means anything to the tokenizer: {subject!r}")
    written: list[tuple[int, ...]] = []
    turns = [_latest_turn(code, ids) for ids in prompts]
    for turn in turns:
        said = {*code.alike[torch.tensor(turn, device=code.alike.device)].tolist()} if turn else set[int]()
        if not any(said.issuperset(one) for one in (*written, *known)):
            there = _meant(tokenizer, code, _where(tokenizer, turn, subject))
            if not there:
                raise ValueError(
                    f"each prompt of an edit must name its subject in what the user says last, {subject!r} is not in "
                    f"{tokenizer.decode(turn)!r}: give the words in which it stands there, or no subject"
                )
            written.append(there)
    if len(written) > SPELLINGS:
        raise ValueError(f"the prompts of an edit write the subject {subject!r} in more than {SPELLINGS} ways")
    names = torch.full((SPELLINGS, TOKENS), -1, dtype=torch.int32)
    for place, own in enumerate([*written, *known][:SPELLINGS]):
        names[place, : len(own)] = torch.tensor(own, dtype=torch.int32)
    return names


def _meant(tokenizer: Any, code: RoutingCode, ids: Sequence[int]) -> tuple[int, ...]:
    """Of the tokens of a subject those that count, as `names_of` says."""
    known = torch.tensor([one for one in ids if one < len(code.weights)], dtype=torch.int64, device=code.weights.device)
    heavy = {
        one: weight for one, weight in zip(known.tolist(), code.weights[known].tolist(), strict=True) if weight > 0
    }
    spoken = [one for one in heavy if any(c.isalnum() or c == _BROKEN for c in tokenizer.decode([one]))]
    chosen = sorted(spoken or heavy, key=lambda one: -heavy[one])[:TOKENS]
    return tuple(dict.fromkeys(code.alike[torch.tensor(chosen, dtype=torch.int64, device=known.device)].tolist()))


def _latest_turn(code: RoutingCode, ids: Sequence[int]) -> list[int]:
    """Of the token ids of a prompt those of the user's latest turn, or of all where it has none."""
    device, size = code.mean.device, len(ids)
    hidden, real = torch.zeros((1, size, 1), device=device), torch.ones((1, size), dtype=torch.bool)
    # what is about to be read of it is its tokens alone: hidden states of one number will do
    words = code.read(None, hidden, torch.tensor([ids], device=device), real.to(device)).words[0]
    counts = (words >= 0).nonzero().flatten().tolist()
    return [*ids[counts[0] : counts[-1] + 1]] if counts else []


def _where(tokenizer: Any, ids: list[int], subject: str) -> list[int]:
    """The fewest tokens in which a subject stands for the first time; none where it does not."""
    bare = subject.strip().casefold()

    def has(start: int, end: int) -> bool:
        return bare in tokenizer.decode(ids[start:end], clean_up_tokenization_spaces=False).casefold()

    end = bisect.bisect_left(range(len(ids) + 1), True, key=lambda one: has(0, one))
    if end > len(ids):
        return []
    start = bisect.bisect_left(range(end), True, key=lambda one: not has(one, end)) - 1
    return ids[max(start, 0) : end]
