"""Registers the ops with torch: schema and fake in Python, so that they exist where no compiler does."""

from collections.abc import Callable
from typing import Any

import torch

from memoir_fast import backends

_library = torch.library.Library("memoir_fast", "DEF")


def register(name: str, schema: str, check: Callable[..., None], fake: Callable[..., Any]) -> None:
    """Defines `torch.ops.memoir_fast.<name>`.

    `check` raises on arguments that the op does not take; it runs on every call, so that a raw call of the torch op is
    as safe as its Python face. `fake` makes empty outputs of the right shape.
    """

    def dispatch(*args: Any) -> Any:
        check(*args)
        return backends.run(name, *args)

    def checked_fake(*args: Any) -> Any:
        check(*args)
        return fake(*args)

    _library.define(name + schema)
    _library.impl(name, dispatch, "CPU")
    _library.impl(name, dispatch, "CUDA")
    torch.library.register_fake(f"memoir_fast::{name}", checked_fake, lib=_library)
