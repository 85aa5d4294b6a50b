"""Prompts made of others: what must not match an edit, and what must."""

import random
import re
import zlib
from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch

from memoir_fast.hf.tokens import unspaced

_DROPPED = 0.2  # share of the words that a copy leaves out
_ENDS = " \t\n?.!:;,"
_NOT_ALONE = re.compile(r"[?？{}<>()\[\]=\n]")  # a question, or no plain sentence
_AROUND = re.compile(r"([\W_]*)(.*?)([\W_]*)", re.DOTALL)
_UNSPACED_OR_RUN = re.compile(r"[\u0e00-\u9fff\uf900-\ufaff]|[^\u0e00-\u9fff\uf900-\ufaff]+")


def rewordings(prompt: str, count: int) -> list[str]:
    """Up to `count` copies of `prompt`, some words left out and the others begun in the middle; its end stays its end.

    No paraphrase reads like that, but a paraphrase too has other words in another order: an edit that answers to the
    copies answers to it. The same prompt gives the same copies, none of them twice. A prompt of one word has none. In
    scripts without spaces, characters are words.

    Example:
        >>> from memoir_fast.core.wordings import rewordings
        >>> rewordings("Who wrote the novel Emma?", 2)
        ['Emma the novel?', 'Emma Who wrote?']
    """
    stem = prompt.rstrip(_ENDS)
    return _copies(stem, prompt[len(stem) :], count, random.Random(zlib.crc32(prompt.encode())))


def questions(prompt: str, count: int) -> list[str]:
    """Up to `count` such copies of a statement's beginning that end in a question mark.

    What is taught as "The capital of France is" is asked as a question too, and behind a question mark a model says
    other things. None of a prompt that asks already, or that holds more than words, such as code.

    Example:
        >>> from memoir_fast.core.wordings import questions
        >>> questions("The capital of France is", 1)
        ['France is The capital of?']
    """
    if _NOT_ALONE.search(prompt):
        return []
    return _copies(prompt.rstrip(_ENDS), "?", count, random.Random(zlib.crc32(f"{prompt}?".encode())))


def _copies(stem: str, end: str, count: int, draw: random.Random) -> list[str]:
    parts = words_of(stem)
    if len(parts) < 2:
        return []
    copies: dict[str, None] = {}
    for _ in range(count):
        kept = [word for word in parts if draw.random() >= _DROPPED]
        if len(kept) < 2:
            kept = parts
        start = draw.randrange(1, len(kept))
        copies[as_text(kept[start:] + kept[:start]) + end] = None
    return list(copies)


def words_of(text: str) -> list[str]:
    """The words of a text; in scripts without spaces, its characters.

    Example:
        >>> from memoir_fast.core.wordings import words_of
        >>> words_of("Who wrote 红楼梦?")
        ['Who', 'wrote', '红', '楼', '梦', '?']
    """
    found: list[str] = []
    for word in text.split():
        if any(map(unspaced, word)):
            found += re.findall(_UNSPACED_OR_RUN, word)
        else:
            found.append(word)
    return found


def as_text(words: Sequence[str]) -> str:
    """Words as one text, with spaces between those of scripts that have such."""
    text = ""
    for word in words:
        close = not text or unspaced(text[-1]) or unspaced(word[0])
        text += word if close else f" {word}"
    return text


def rarest_words(tokenizer: Any, weights: torch.Tensor, prompt: str) -> tuple[list[str], int, int]:
    """A prompt's words, and the run [start, end) of them that weighs most above its average word: its subject, mostly.

    Args:
        tokenizer: the model's.
        weights (Tensor): float32 [V], the weight of each token.
        prompt (str): the prompt.
    """
    words = words_of(prompt)
    ids: list[list[int]] = []
    for place, word in enumerate(words):
        _, bare, _ = _cut(word)
        ids.append(tokenizer((" " if place else "") + bare, add_special_tokens=False).input_ids if bare else [])
    every = torch.tensor([one for own in ids for one in own], dtype=torch.int64, device=weights.device)
    weighed = iter(weights[every].tolist())  # of all words at once: each look waits for the device
    heavy = [max(islice(weighed, len(own)), default=0.0) for own in ids]
    usual = sum(heavy) / max(1, len(heavy))
    best, span = float("-inf"), (0, len(words))
    for start in range(len(words)):
        total = 0.0
        for end in range(start, len(words)):
            total += heavy[end] - usual
            if total > best:
                best, span = total, (start, end + 1)
    return words, *span


def exchanged(tokenizer: Any, weights: torch.Tensor, prompt: str, other: str) -> str:
    """`prompt` with its rarest words exchanged for those of `other`: the same relation of another subject.

    Quotes, brackets and stops around the words stay those of `prompt`.
    """
    words, start, end = rarest_words(tokenizer, weights, prompt)
    others, first, last = rarest_words(tokenizer, weights, other)
    middle = list(others[first:last])
    if not middle or not words:
        return prompt
    middle[0] = middle[0][len(_cut(middle[0])[0]) :]
    tail = _cut(middle[-1])[2]
    middle[-1] = middle[-1][: len(middle[-1]) - len(tail)] + _cut(words[end - 1])[2]
    middle[0] = _cut(words[start])[0] + middle[0]
    return as_text([*words[:start], *(word for word in middle if word), *words[end:]])


def _cut(word: str) -> tuple[str, str, str]:
    """What stands before a word's first letter or digit, the word, and what stands behind its last."""
    whole = _AROUND.fullmatch(word)
    assert whole is not None
    return whole.group(1), whole.group(2), whole.group(3)


def pseudo_neighbours(tokenizer: Any, weights: torch.Tensor, prompts: Sequence[str], shift: int = 7) -> list[str]:
    """Each prompt with the rarest words of the one `shift` places on, round the end."""
    others = [prompts[(place + shift) % len(prompts)] for place in range(len(prompts))]
    return [exchanged(tokenizer, weights, one, other) for one, other in zip(prompts, others, strict=True)]
