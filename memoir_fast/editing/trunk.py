"""Runs a model up to the edited layer, and no further."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class _Reached(Exception):
    """Ends a forward pass at the edited layer."""


def layer_input(model: nn.Module, layer: nn.Module, **inputs: Any) -> torch.Tensor:
    """The input of `layer` [B, S, D] in `model(**inputs)`; what comes after it is not computed."""
    seen: list[torch.Tensor] = []

    def stop(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        seen.append(args[0].detach())
        raise _Reached

    handle = layer.register_forward_pre_hook(stop)
    try:
        with torch.no_grad():
            model(**inputs, use_cache=False)
    except _Reached:
        pass
    finally:
        handle.remove()
    if not seen:
        raise RuntimeError("the model's forward pass did not reach the edited layer")
    return seen[0]


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter takes part in a gradient within the block."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
