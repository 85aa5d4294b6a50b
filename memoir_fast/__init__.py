"""memoir_fast: thousands of corrections to a language model, one after another, without retraining it."""

import importlib
from typing import TYPE_CHECKING, Any

from memoir_fast import _source_tree  # noqa: F401  (first: it makes memoir_fast.kernels importable)

if TYPE_CHECKING:
    from memoir_fast.config import MemoirConfig
    from memoir_fast.core.calibration import Calibration
    from memoir_fast.core.edit import Edit
    from memoir_fast.core.status import MemoirStatus
    from memoir_fast.errors import MemoirError
    from memoir_fast.hf.routing import Route
    from memoir_fast.memoir import EditResult, Memoir
    from memoir_fast.modules import MaskStore, MemoirLinear, ResidualMemory, TopHash
    from memoir_fast.recipe import RECIPES, Recipe

__version__ = "0.1.0"

_HOME = {
    "Calibration": "core.calibration",
    "Edit": "core.edit",
    "EditResult": "memoir",
    "MaskStore": "modules",
    "Memoir": "memoir",
    "MemoirConfig": "config",
    "MemoirError": "errors",
    "MemoirLinear": "modules",
    "MemoirStatus": "core.status",
    "RECIPES": "recipe",
    "Recipe": "recipe",
    "ResidualMemory": "modules",
    "Route": "hf.routing",
    "TopHash": "modules",
}

__all__ = [
    "RECIPES",
    "Calibration",
    "Edit",
    "EditResult",
    "MaskStore",
    "Memoir",
    "MemoirConfig",
    "MemoirError",
    "MemoirLinear",
    "MemoirStatus",
    "Recipe",
    "ResidualMemory",
    "Route",
    "TopHash",
]


def __getattr__(name: str) -> Any:
    """Imports a public name at its first use: `import memoir_fast` alone loads nothing heavy."""
    if name not in _HOME:
        raise AttributeError(f"module 'memoir_fast' has no attribute {name!r}")
    return getattr(importlib.import_module(f"memoir_fast.{_HOME[name]}"), name)
