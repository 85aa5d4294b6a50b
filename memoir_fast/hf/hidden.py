"""Finds the hidden states [B, S, H] of a call of a block or a decoder, by what they are and not by their name."""

from collections.abc import Callable, MutableMapping
from typing import Any

import torch


def hidden_states(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """The hidden states that a block is called with: the first tensor [B, S, H] of floats among its arguments.

    Raises:
        TypeError: there is none.
    """
    for one in (*args, *kwargs.values()):
        if _is_hidden(one):
            return one
    raise TypeError(f"a block must be called with hidden states [B, S, H], got {_kinds((*args, *kwargs.values()))}")


def with_hidden_states(output: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A decoder's output whose hidden states are `change` of what they were; an object is changed in place.

    Raises:
        TypeError: the output, a tensor, a tuple, a mapping or an object with attributes, holds none.
    """
    if _is_hidden(output):
        return change(output)
    if isinstance(output, (tuple, list)):
        for place, one in enumerate(output):
            if _is_hidden(one):
                return type(output)([*output[:place], change(one), *output[place + 1 :]])
    parts = output if isinstance(output, MutableMapping) else getattr(output, "__dict__", {})
    for name, one in parts.items():
        if _is_hidden(one):
            if parts is output:
                output[name] = change(one)
            else:
                setattr(output, name, change(one))
            return output
    raise TypeError(f"a decoder must give hidden states [B, S, H], got {_kinds([output])}")


def _is_hidden(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() == 3 and value.is_floating_point()


def _kinds(values: Any) -> str:
    return ", ".join(type(one).__name__ for one in values) or "nothing"
