"""Makes the folder `kernels/` beside this package importable as `memoir_fast.kernels` from a checkout.

An installed package has `memoir_fast/kernels` and needs nothing of this. `sys.path` is never touched, so the
folder's plain name cannot shadow the registry package `kernels`, which transformers probes for.
"""

import importlib.machinery
import importlib.util
import sys
from pathlib import Path


def expose_kernels() -> None:
    """Registers `memoir_fast.kernels` as a namespace package, where the source tree has the folder outside."""
    package = Path(__file__).resolve().parent
    outside = package.parent / "kernels"
    if (package / "kernels").is_dir() or not (outside / "_launch.py").is_file():
        return
    spec = importlib.machinery.ModuleSpec("memoir_fast.kernels", None, is_package=True)
    spec.submodule_search_locations = [str(outside)]
    module = importlib.util.module_from_spec(spec)
    sys.modules["memoir_fast.kernels"] = module
    sys.modules["memoir_fast"].kernels = module  # type: ignore[attr-defined]


expose_kernels()
