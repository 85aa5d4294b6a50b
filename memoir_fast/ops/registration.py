"""Registers an op with torch: its schema, its fake and its implementations, each written once, beside its docs."""

from collections.abc import Callable
from typing import Any

import torch

from memoir_fast import backends
from memoir_fast.backends import Declared, Native

_library = torch.library.Library("memoir_fast", "DEF")


def register(
    name: str,
    schema: str,
    check: Callable[..., None],
    fake: Callable[..., Any],
    *,
    reference: Callable[..., Any],
    triton: Callable[[], tuple[Callable[..., Any], Callable[..., str | None]]],
    cpu: Native | None = None,
    cuda: Native | None = None,
) -> Callable[..., Any]:
    """Defines `torch.ops.memoir_fast.<name>` and returns a shorter way to it, for calls that need no gradient.

    The shorter way goes straight to the extension's kernel where that is what would serve: it looks at its arguments
    itself. What it refuses goes the long way, where `check` says what is wrong, or another backend serves. This saves
    two thirds of a small call's time.

    Args:
        name, schema: the op's word, and its arguments and results as torch writes them.
        check: raises on arguments that the op does not take; it runs on every call, so that a raw call of the torch op
            is as safe as its Python face.
        fake: makes empty outputs of the right shape.
        reference: the specification, in plain torch.
        triton: imports the op's Triton kernels; their launcher, and what says why they cannot serve a call.
        cpu, cuda: the extension's kernel of that device; None where it has none.
    """

    def dispatch(*args: Any) -> Any:
        check(*args)
        return backends.run(name, *args)

    def checked_fake(*args: Any) -> Any:
        check(*args)
        return fake(*args)

    backends.declare(name, Declared(schema, checked_fake, reference, triton, {"cpu": cpu, "cuda": cuda}))
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
