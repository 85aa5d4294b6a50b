"""Finds the compiled extension, built from csrc/, and the ops in it."""

import functools
from collections.abc import Callable
from typing import Any

import torch


@functools.cache
def extension() -> Any:
    """The loaded extension module. Raises ImportError, with the reason, where it was not built or cannot load."""
    from memoir_fast import _C  # type: ignore[attr-defined]

    return _C


def load(op: str, backend: str) -> Callable[..., Any]:
    """The extension's kernel for `op`; `backend` is `cpu` or `cuda`. Raises ImportError where there is none."""
    built = extension().ops(backend)
    if op not in built:
        raise ImportError(f"the extension has no {backend} kernel for {op}")
    return getattr(torch.ops.memoir_fast_native, op).default
