"""Finds the compiled extension, built from csrc/, and the kernels in it.

A kernel is `torch.ops.memoir_fast_native.<op>`, with the signature of the op's reference. `MEMOIR_FAST_CPU` (avx512,
avx2, portable or auto) names the instruction set of the CPU kernels; by default the first calls of a process find out
which of this machine's is the quickest, all with one result: `extension().cpu_trials()`.
"""

import functools
import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from memoir_fast.errors import BackendError

_REASON = Path(__file__).parent / "_build_failure.txt"
_AGAIN = "build it again: pip install --no-build-isolation -e ."
_PATHS = ("auto", "avx512", "avx2", "portable")
_defined: set[str] = set()


def _reason(otherwise: str) -> str:
    """What the build said that it left out, and why."""
    return _REASON.read_text().strip() if _REASON.is_file() else otherwise


@functools.cache
def extension() -> Any:
    """The loaded extension module.

    Raises:
        ImportError: it was not built or cannot load; with the reason.
        BackendError: `MEMOIR_FAST_CPU` names what there is not, or what this CPU cannot run.
    """
    path = os.environ.get("MEMOIR_FAST_CPU") or "auto"
    if path not in _PATHS:
        raise BackendError(f"MEMOIR_FAST_CPU must be {', '.join(_PATHS[:-1])} or {_PATHS[-1]}, got {path!r}")
    try:
        return importlib.import_module("memoir_fast._C")
    except RuntimeError as error:
        raise BackendError(f"MEMOIR_FAST_CPU={path}: {error}") from None
    except ModuleNotFoundError:
        hint = "not built here; run pip install --no-build-isolation -e . where torch, ninja and a compiler are"
        raise ImportError(f"the extension memoir_fast._C is missing: {_reason(hint)}") from None


@functools.cache
def _library() -> torch.library.Library:
    """What the ops are defined in; made after the extension is loaded, since an old one defines them itself."""
    return torch.library.Library("memoir_fast_native", "DEF")


def load(op: str, backend: str, schema: str, fake: Callable[..., Any]) -> Callable[..., Any]:
    """The extension's kernel for `op`; `backend` is `cpu` or `cuda`. Raises ImportError where there is none.

    `schema` and `fake` are the op's own. A file that was built before an op changed is never called as if it were
    today's: its functions' types tell what they take.
    """
    module = extension()
    built = module.ops(backend)
    if not isinstance(built, dict):
        raise ImportError(f"the extension is older than its sources: {_AGAIN}")
    if op not in built:
        if backend == "cuda" and not module.build_info()["cuda"]:
            raise ImportError(f"the extension was built without CUDA: {_reason('no reason was kept')}")
        raise ImportError(f"the extension has no {backend} kernel for {op}")
    wanted = ", ".join(str(argument.type) for argument in torch._C.parse_schema(op + schema).arguments)
    if built[op] != wanted:
        raise ImportError(
            f"the extension is older than its sources: its {op} takes ({built[op]}), not ({wanted}); {_AGAIN}"
        )
    if op not in _defined:
        _defined.add(op)
        _library().define(op + schema)
        torch.library.register_fake(f"memoir_fast_native::{op}", fake, lib=_library())
    return getattr(torch.ops.memoir_fast_native, op).default
