"""What an edit is learned from besides its own prompt: the prompt behind prefixes, and scrambled copies of it."""

from typing import Any

import torch
from torch import nn

from memoir_fast.hf.own_pass import uncompiled
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


def write_prefixes(model: nn.Module, tokenizer: Any, count: int, new_tokens: int) -> list[str]:
    """`count` short texts: everyday openings, continued greedily by the model. The same model writes the same texts."""
    texts = []
    for index in range(count):
        opening = _OPENINGS[index % len(_OPENINGS)]
        length = new_tokens + index // len(_OPENINGS)
        inputs = tokenizer(opening, return_tensors="pt").to(device_of(model))
        with uncompiled(model.modules()), torch.no_grad():
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
