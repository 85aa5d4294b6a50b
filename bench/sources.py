"""Which source files a row's figure depends on, as a digest: a figure of older kernels is told from one of today's."""

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import NAMED

ROOT = Path(__file__).resolve().parent.parent


def of_tree(path: str) -> bytes:
    """A file of this tree."""
    return (ROOT / path).read_bytes()


def serves(path: str, device: str) -> bool:
    """Whether a file can matter on a device, `cpu` or `cuda`; every op has a kernel on a GPU."""
    if device == "cpu":
        return not (path.startswith("kernels/") or path.endswith((".cu", ".cuh")) or "_cuda" in path)
    return not (path.startswith("memoir_fast/reference/") or "_cpu" in path)


def files(bench: str, device: str) -> list[str]:
    """The files of this tree that a benchmark's figures depend on; none of one that is no longer there.

    Raises LookupError where a pattern of its sources matches no file: that file has another name now.
    """
    found: set[Path] = set()
    for pattern in NAMED[bench].sources if bench in NAMED else ():
        matched = [path for path in ROOT.glob(pattern) if path.is_file()]
        if not matched:
            raise LookupError(
                f"no file matches {pattern!r}, which bench/bench_{bench}.py names among its SOURCES: "
                "name what its kernels are in now"
            )
        found.update(matched)
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
    """Whether a row is of sources other than today's, or does not say of which."""
    return row.get("sources") != today(row["bench"], device)
