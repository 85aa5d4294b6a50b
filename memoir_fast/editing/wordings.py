"""What an edit is learned from besides its own prompt: the prompt behind prefixes, and scrambled copies of it."""

import random
import zlib
from typing import Any

import torch
from torch import nn

from memoir_fast.hf.presets import device_of

_OPENINGS = (
    "The weather today is",
    "In my opinion, the best way to",
    "A few years ago,",
    "Because of the new rules,",
    "Yes, and I also think that",
    "Here is a short story about",
    "The most important thing to remember is",
    "My friend told me that",
    "According to the report,",
    "She opened the door and",
    "Before we begin,",
    "In the next chapter,",
)
_SENTENCE_ENDS = (".", "!", "?")
_DROPPED = 0.2  # share of the words that a copy leaves out
_ENDS = " \t\n?.!:;,"


def write_prefixes(model: nn.Module, tokenizer: Any, count: int, new_tokens: int) -> list[str]:
    """`count` short texts: everyday openings, continued greedily by the model. The same model writes the same texts."""
    texts = []
    for index in range(count):
        opening = _OPENINGS[index % len(_OPENINGS)]
        length = new_tokens + index // len(_OPENINGS)
        inputs = tokenizer(opening, return_tensors="pt").to(device_of(model))
        with torch.no_grad():
            output = model.generate(  # type: ignore[operator]
                input_ids=inputs.input_ids,
                attention_mask=inputs.attention_mask,
                max_new_tokens=length,
                do_sample=False,
                num_beams=1,
                pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
            )
        texts.append(" ".join(tokenizer.decode(output[0], skip_special_tokens=True).split()))
    return texts


def with_prefix(prefix: str, prompt: str) -> str:
    """`prompt` after `prefix`, as a sentence of its own; an empty prefix leaves it alone."""
    if not prefix:
        return prompt
    return f"{prefix} {prompt}" if prefix.endswith(_SENTENCE_ENDS) else f"{prefix}. {prompt}"


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
