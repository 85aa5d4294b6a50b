"""What a model says freely after one prompt."""

from typing import Any, NamedTuple

import torch

from memoir_fast.hf.cache import find_cache
from memoir_fast.hf.presets import device_of
from memoir_fast.hf.tokens import padding_id, prompt_ids


class Answer(NamedTuple):
    """What a model said freely."""

    text: str
    """White space at the ends is cut."""
    cache: Any
    """The keys and values of prompt and answer; None where the model keeps none."""


def answer(model: Any, tokenizer: Any, prompt: str, new_tokens: int) -> str:
    """What the model says after `prompt`, greedily, in at most `new_tokens` tokens; white space at the ends is cut.

    A model that would say nothing at all, as instructed models do after a bare question, is not allowed to end.
    """
    text = generated(model, tokenizer, prompt, new_tokens).text
    return text or generated(model, tokenizer, prompt, new_tokens, least=new_tokens).text


@torch.no_grad()
def generated(model: Any, tokenizer: Any, prompt: str, new_tokens: int, least: int = 0) -> Answer:
    """What the model says greedily, "" where it ends at once, with the cache on which the sequence's route lies.

    Args:
        model, tokenizer, prompt: as in `answer`.
        new_tokens (int): most tokens of the answer.
        least (int): tokens before which the model may not end. Default: 0.
    """
    ids = torch.tensor([prompt_ids(tokenizer, prompt)], device=device_of(model))
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        min_new_tokens=least,
        max_new_tokens=new_tokens,
        do_sample=False,
        num_beams=1,
        pad_token_id=padding_id(tokenizer),
        return_dict_in_generate=True,
    )
    said = output.sequences[0, ids.shape[1] :]
    return Answer(tokenizer.decode(said, skip_special_tokens=True).strip(), find_cache(output))
