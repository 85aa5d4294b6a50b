"""Runs the engine's tests of a GPU on a device that every machine has: one of its own, whose memory is the host's.

    python tools/second_device.py [PYTEST OPTIONS]

A tensor of the CPU among those of the device is refused, as CUDA refuses it, in learning, routing, files and all else
that `tests/test_on_a_gpu.py` does. No kernel of a GPU runs, and `is_cuda` is false. It builds second_device.cpp first,
with torch's headers, ninja and a C++ compiler: a minute, once.
"""

import sys
import types
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

NAME = "second"
ROOT = Path(__file__).resolve().parents[1]


def make() -> None:
    """Builds the device, and makes torch know it."""
    cpp_extension.load(
        "memoir_fast_second_device", [str(Path(__file__).with_suffix(".cpp"))], extra_cflags=["-O1", "-w"]
    )
    torch.utils.rename_privateuse1_backend(NAME)
    module = types.ModuleType(f"torch.{NAME}")
    told = {
        "is_available": True,
        "is_initialized": True,
        "device_count": 1,
        "current_device": 0,
        "_is_in_bad_fork": False,
        "current_stream": None,
        "get_amp_supported_dtype": [torch.bfloat16],
    }
    for name, value in told.items():
        setattr(module, name, lambda *_, value=value: value)
    for name in ("manual_seed", "manual_seed_all", "set_device", "set_rng_state", "synchronize", "_lazy_init"):
        setattr(module, name, lambda *_, **__: None)
    setattr(module, "get_rng_state", lambda *_: torch.get_rng_state())  # noqa: B010  (a module has no such attribute)
    torch._register_device_module(NAME, module)
    torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)
    torch.cuda.is_current_stream_capturing = lambda: False  # what a torch without CUDA cannot answer


if __name__ == "__main__":
    make()
    own = sys.argv[1:] or ["-q", str(ROOT / "tests" / "test_on_a_gpu.py"), "-k", NAME]
    raise SystemExit(pytest.main([*own, "-p", "no:cacheprovider"]))
