"""Scrambled copies of a prompt, from which an edit learns what its paraphrases will need."""

import random
import zlib

_DROPPED = 0.2  # share of the words that a copy leaves out
_ENDS = " \t\n?.!:;,"


def rewordings(prompt: str, count: int) -> list[str]:
    """Up to `count` copies of `prompt`, some words left out and the others begun in the middle; its end stays its end.

    No paraphrase reads like that, but a paraphrase too has other words in another order: an edit that answers to the
    copies answers to it. The same prompt gives the same copies, none of them twice. A prompt of one word has none.

    Example:
        >>> rewordings("Who wrote the novel Emma?", 2)
        ['Emma the novel?', 'Emma Who wrote?']
    """
    stem = prompt.rstrip(_ENDS)
    words, end = stem.split(), prompt[len(stem) :]
    if len(words) < 2:
        return []
    draw = random.Random(zlib.crc32(prompt.encode()))
    copies: dict[str, None] = {}
    for _ in range(count):
        kept = [word for word in words if draw.random() >= _DROPPED]
        if len(kept) < 2:
            kept = words
        start = draw.randrange(1, len(kept))
        copies[" ".join(kept[start:] + kept[:start]) + end] = None
    return list(copies)
