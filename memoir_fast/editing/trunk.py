"""Runs a model up to the edited layer, and no further."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn

from memoir_fast.editing.own_pass import OwnPass


class _Reached(Exception):
    """Ends a forward pass at the edited layer."""


def layer_input(model: nn.Module, layer: nn.Module, **inputs: Any) -> torch.Tensor:
    """The input of `layer` [B, S, D] in `model(**inputs)`; what comes after it is not computed."""
    seen: list[torch.Tensor] = []

    def stop(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        seen.append(args[0].detach())
        raise _Reached

    with OwnPass() as own, torch.no_grad(), suppress(_Reached):
        own.before(layer, stop)
        model(**inputs, use_cache=False)
    if not seen:
        raise RuntimeError("the model's forward pass did not reach the edited layer")
    return seen[0]


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter takes part in a gradient within the block.

    It holds for other threads too: they may run the model meanwhile, and not train it.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
