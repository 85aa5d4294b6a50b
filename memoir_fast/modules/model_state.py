"""The names of a `MemoirLinear` in a model's state_dict: those that the base layer had before it had a memory."""

import logging
from typing import Any

import torch

logger = logging.getLogger("memoir_fast")


def base_keys_as_own(module: Any, state: dict, prefix: str, _metadata: dict) -> None:
    """The model's state_dict keeps the names that it has without a memory, so that it loads into a plain model."""
    inner = prefix + "base."
    for key in [key for key in state if key.startswith(inner)]:
        state[prefix + key.removeprefix(inner)] = state.pop(key)
    if module.router is not None:
        for key in _memory_keys(module, prefix):
            state.pop(key, None)
        if len(module.store) and not module._said:
            module._said = True
            logger.warning(
                "the model's state_dict, and what is saved of it, is that of the model without its memory of %d edits: "
                "memoir.save_pretrained(folder) saves those",
                len(module.store.live),
            )


def own_keys_as_base(module: Any, state: dict, prefix: str, *_: object) -> None:
    """What has the plain model's names in a state that is loaded goes to the base layer."""
    for name in module.base.state_dict():
        if prefix + name in state:
            state[f"{prefix}base.{name}"] = state.pop(prefix + name)
    if module.router is not None:  # a plain model's state leaves the memory alone, and is complete without it
        memory = _memory_keys(module, prefix)
        if not any(key in state for key in memory):
            state.update(memory)


def _memory_keys(module: Any, prefix: str) -> dict[str, torch.Tensor]:
    """The memory's part of the module's state, by its names there."""
    inner = {name: module._modules.get(name) for name in module.own}
    parts = {name: one.state_dict(prefix=f"{prefix}{name}.") for name, one in inner.items() if one is not None}
    return {key: tensor for part in parts.values() for key, tensor in part.items()}
