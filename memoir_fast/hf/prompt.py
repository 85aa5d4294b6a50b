"""How many positions of a `generate` call are its prompt."""

import inspect
from collections.abc import Iterable
from typing import Any

import torch

from memoir_fast.errors import UnsupportedModelError
from memoir_fast.hf.adapters import require_no_soft_prompt
from memoir_fast.hf.cache import find_cache


def prompt_positions(model: Any, generate: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
    """Positions of the prompt in `generate(*args, **kwargs)`: S of its embeddings [B, S, H] or token ids [B, S].

    Embeddings win over ids, since the cache is filled from them. Ids go by whatever name generate's first argument or
    the model's main input has; failing these, they are the first integers [B, S] that are not called a mask. They may
    be those alone that come behind what a cache holds: then the attention mask [B, past + S] tells of the rest. 1 where
    the call has no tensor at all: generation then starts from one token. None where none of its tensors is a prompt of
    these kinds. UnsupportedModelError where PEFT puts virtual tokens in front of it, or passes of a negative prompt
    have no cache to be known by.
    """
    require_no_soft_prompt(model)
    parameters = list(inspect.signature(generate).parameters)
    given = {**dict(zip(parameters, args, strict=False)), **kwargs}
    _require_told_apart(model, given)
    width = _embedding_width(model)
    embedded = [one for one in given.values() if _is_embedded(one, width)]
    named = [given.get(name) for name in (*parameters[:1], getattr(model, "main_input_name", "input_ids"))]
    other = [value for name, value in given.items() if "mask" not in name]
    if embedded:
        return embedded[0].shape[1]
    for ids in (*_ids(named), *_ids(other)):
        return max(ids.shape[1], _masked_positions(given))
    return None if any(isinstance(one, torch.Tensor) for one in given.values()) else 1


def _require_told_apart(model: Any, given: dict[str, Any]) -> None:
    config = given.get("generation_config") or getattr(model, "generation_config", None)
    scale, cached = (given.get(name, getattr(config, name, None)) for name in ("guidance_scale", "use_cache"))
    if scale not in (None, 1, 1.0) and cached is False:
        raise UnsupportedModelError(
            f"guidance_scale={scale} with use_cache=False cannot be followed: without a cache, what is said behind a "
            "negative prompt cannot be told from it; leave use_cache as it is"
        )


def _masked_positions(given: dict[str, Any]) -> int:
    """Positions that the attention mask beside a cache speaks of; 0 without these."""
    mask = given.get("attention_mask")
    if not isinstance(mask, torch.Tensor) or mask.dim() != 2 or find_cache(given) is None:
        return 0
    return mask.shape[1]


def _embedding_width(model: Any) -> int | None:
    try:
        return model.get_input_embeddings().weight.shape[-1]
    except (AttributeError, NotImplementedError):
        return None


def _is_embedded(value: Any, width: int | None) -> bool:
    if not isinstance(value, torch.Tensor) or value.dim() != 3 or not value.is_floating_point():
        return False
    return width is None or value.shape[2] == width


def _ids(values: Iterable[Any]) -> list[torch.Tensor]:
    return [
        one
        for one in values
        if isinstance(one, torch.Tensor) and one.dim() == 2 and not one.is_floating_point() and one.dtype != torch.bool
    ]
