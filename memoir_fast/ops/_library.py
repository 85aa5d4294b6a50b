"""Registers the ops with torch: schema and fake in Python, so that they exist where no compiler does."""

from collections.abc import Callable
from typing import Any

import torch

from memoir_fast import backends

_library = torch.library.Library("memoir_fast", "DEF")


def register(name: str, schema: str, check: Callable[..., None], fake: Callable[..., Any]) -> Callable[..., Any]:
    """Defines `torch.ops.memoir_fast.<name>` and returns a shorter way to it, for calls that need no gradient.

    `check` raises on arguments that the op does not take; it runs on every call, so that a raw call of the torch op is
    as safe as its Python face. `fake` makes empty outputs of the right shape.

    The shorter way goes straight to the extension's kernel where that is what would serve: it looks at its arguments
    itself. What it refuses goes the long way, where `check` says what is wrong, or another backend serves. This saves
    two thirds of a small call's time.
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
    op = getattr(torch.ops.memoir_fast, name).default

    def call(*args: Any) -> Any:
        if type(args[0]) is torch.Tensor and not torch.compiler.is_compiling():
            kernel = backends.native_kernel(name, args)
            if kernel is not None:
                try:
                    return kernel(*args)
                except RuntimeError:
                    pass
        return op(*args)

    return call
