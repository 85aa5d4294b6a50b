"""Which source files a row's figure depends on, as a digest: a figure of older kernels is told from one of today's."""

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

# Files of each op, as patterns from the project's root. What all share (launching, checks) is left out: it changes
# often, and a kernel's time seldom with it.
_HASH = ("kernels/tophash.py", "csrc/*tophash*", "csrc/block_sums.cuh")
_FEATURE = ("kernels/prompt_feature.py", "csrc/*prompt_feature*", "csrc/block_sums.cuh")
_MATCH = ("kernels/mask_match.py", "csrc/mask_match*", "csrc/overlap*", "csrc/scan.h")
_LINEAR = ("kernels/*masked_linear*", "csrc/*masked_linear*")
_LAYER = (*_HASH, *_FEATURE, *_MATCH, *_LINEAR)
PATTERNS = {
    "tophash": _HASH,
    "prompt_feature": _FEATURE,
    "mask_columns": ("kernels/mask_columns.py", "csrc/mask_columns*", "csrc/block_sums.cuh"),
    "mask_match": _MATCH,
    "mask_overlap": ("kernels/mask_overlap.py", "csrc/mask_overlap*", "csrc/overlap*", "csrc/scan.h"),
    "masked_linear": _LINEAR,
    "backward": ("kernels/*masked_linear*",),
    "memory_update": ("kernels/memory_update.py",),
    "layer": (*_LAYER, "memoir_fast/modules/*.py"),
    "generate": (*_LAYER, "memoir_fast/modules/*.py", "memoir_fast/hf/routing.py"),
    "edit_phases": ("memoir_fast/editing/*.py", "memoir_fast/hf/partial_forward.py"),
}


def of_tree(path: str) -> bytes:
    """A file of this tree."""
    return (ROOT / path).read_bytes()


def serves(path: str, device: str) -> bool:
    """Whether a file can matter on a device, `cpu` or `cuda`."""
    if device == "cpu":
        return not (path.startswith("kernels/") or path.endswith((".cu", ".cuh")) or "_cuda" in path)
    return "_cpu" not in path


def files(bench: str, device: str) -> list[str]:
    """The files of this tree that a benchmark's figures depend on; none where nothing is noted for it."""
    found = {path for pattern in PATTERNS.get(bench, ()) for path in ROOT.glob(pattern) if path.is_file()}
    return sorted(name for name in (str(path.relative_to(ROOT)) for path in found) if serves(name, device))


def digest(names: list[str], read: Callable[[str], bytes] = of_tree) -> str | None:
    """Twelve digits for the files' names and contents; None for no files."""
    if not names:
        return None
    whole = hashlib.sha256()
    for name in names:
        whole.update(f"{name}\0".encode() + hashlib.sha256(read(name)).digest())
    return whole.hexdigest()[:12]


@functools.cache
def today(bench: str, device: str) -> str | None:
    """The digest of this tree's files for a benchmark."""
    return digest(files(bench, device))


def is_old(row: dict[str, Any], device: str) -> bool:
    """Whether a row is of sources other than today's."""
    return row.get("sources") != today(row["bench"], device)
