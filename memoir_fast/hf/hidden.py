"""Finds the hidden states [B, S, H] of a call of a block or a decoder, by what they are and not by their name."""

from collections.abc import Callable, MutableMapping
from typing import Any

import torch

from memoir_fast.errors import UnsupportedModelError


def hidden_states(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """The hidden states that a block is called with: the first tensor [B, S, H] of floats among its arguments.

    Raises:
        TypeError: there is none.
    """
    for one in (*args, *kwargs.values()):
        if _is_hidden(one):
            return one
    raise TypeError(f"a block must be called with hidden states [B, S, H], got {_kinds((*args, *kwargs.values()))}")


def batch_shape(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, int] | None:
    """B and S of a decoder's call: those of its hidden states, or else of its token ids; None where there is neither.

    Ids [B, S] are the first integers of that shape that are called neither mask nor position.
    """
    for one in (*args, *kwargs.values()):
        if _is_hidden(one):
            return one.shape[0], one.shape[1]
    named = (one for name, one in kwargs.items() if "mask" not in name and "position" not in name)
    for one in (*args, *named):
        if isinstance(one, torch.Tensor) and one.dim() == 2 and not one.is_floating_point():
            return one.shape[0], one.shape[1]
    return None


def in_rows(x: torch.Tensor, shape: tuple[int, int] | None) -> torch.Tensor:
    """Inputs [B * S, D] of a layer that is given all tokens of a batch in one row, as [B, S, D].

    Args:
        x (Tensor): [B * S, D].
        shape: B and S of the decoder's call; None: there is no call.

    Raises:
        UnsupportedModelError: they are not all of the batch's tokens, or there is no call.
    """
    if shape is None:
        raise UnsupportedModelError(
            "the edited layer is given tokens without rows, outside of a call of the model's decoder: whose tokens "
            "they are cannot be told; name another layer"
        )
    if len(x) != shape[0] * shape[1]:
        raise UnsupportedModelError(
            f"the edited layer is given {len(x)} of the {shape[0]} x {shape[1]} tokens of a batch: name a layer that "
            "sees all of them, as experts do not that tokens are sent to"
        )
    return x.view(*shape, -1)


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
