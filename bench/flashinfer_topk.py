"""FlashInfer's exact top-k as a peer, from the headers of its package alone: nothing of it is imported.

    python bench/flashinfer_topk.py

builds the library ahead, which takes half a minute, and says where it is or why there is none. The headers are those of
an installed `flashinfer-python` (0.7.2 is known to build), or of a copy of its `data` folder, `include` and `cccl`,
that FLASHINFER_INCLUDE names. It is built for the present device by nvcc, once, into build/.
"""

import ctypes
import fcntl
import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

SOURCE = Path(__file__).with_suffix(".cu")
BUILT = Path(__file__).resolve().parent.parent / "build" / "flashinfer"
_PARTS = ("include", "cccl/cub", "cccl/libcudacxx/include", "cccl/thrust")
_PATIENCE = 240.0  # seconds that nvcc may take


def headers() -> list[Path]:
    """The include folders. LookupError where there is no FlashInfer."""
    named = os.environ.get("FLASHINFER_INCLUDE")
    if named:
        data = Path(named).parent if Path(named).name == "include" else Path(named)
        where = f"FLASHINFER_INCLUDE={named}"
    else:
        package = importlib.util.find_spec("flashinfer")
        if package is None or not package.submodule_search_locations:
            raise LookupError("flashinfer is not installed, and FLASHINFER_INCLUDE names no copy of its headers")
        data = Path(next(iter(package.submodule_search_locations))) / "data"
        where = "the installed flashinfer"
    for needed in ("include/flashinfer/topk.cuh", "cccl/cub/cub/device/device_batched_topk.cuh"):
        if not (data / needed).is_file():
            raise LookupError(f"{where} has no {needed}")
    return [data / part for part in _PARTS]


def compiler() -> str:
    """nvcc. LookupError where there is none."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    found = shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")
    if found is None:
        raise LookupError("nvcc is not there to build FlashInfer's top-k")
    return found


def library(capability: tuple[int, int]) -> Path:
    """The built library, made where it is not there yet. LookupError where it cannot be; two that ask build it once."""
    folders, nvcc = headers(), compiler()
    asked = [str(folder) for folder in folders] + [nvcc, SOURCE.read_text(encoding="utf-8")]
    digest = hashlib.sha256("\0".join(asked).encode()).hexdigest()[:12]
    path = BUILT / f"topk-sm{capability[0]}{capability[1]}-{digest}.so"
    BUILT.mkdir(parents=True, exist_ok=True)
    with open(BUILT / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.is_file():
            part = path.with_suffix(".part")
            line = [nvcc, "-std=c++17", "-O3", f"-arch=sm_{capability[0]}{capability[1]}", "--expt-relaxed-constexpr"]
            line += ["--shared", "-Xcompiler", "-fPIC", *(f"-I{folder}" for folder in folders)]
            try:
                subprocess.run(
                    [*line, str(SOURCE), "-o", str(part)], check=True, capture_output=True, text=True, timeout=_PATIENCE
                )
            except subprocess.CalledProcessError as error:
                raise LookupError(f"FlashInfer's top-k does not build: {_first_error(error.stderr)}") from None
            except subprocess.TimeoutExpired:
                raise LookupError(f"FlashInfer's top-k did not build within {_PATIENCE:.0f} s") from None
            part.replace(path)
    return path


def _first_error(output: str) -> str:
    lines = [line for line in output.splitlines() if "error" in line]
    return " ".join((lines or output.splitlines() or ["nvcc said nothing"])[0].split())[:120]


@functools.cache
def topk() -> Callable[[torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]:
    """The function: scores float32 [B, D] on the device, k -> values float32 and indices int32 [B, k], in no order.

    LookupError where it cannot be built, or where it gives other values than torch.topk.
    """
    run = ctypes.CDLL(str(library(torch.cuda.get_device_capability()))).flashinfer_topk
    run.argtypes = [ctypes.c_void_p, *[ctypes.c_int64] * 3, *[ctypes.c_void_p] * 5]
    scratch: dict[tuple[int, ...], torch.Tensor] = {}

    def call(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows, width = scores.shape
        indices = torch.empty((rows, k), dtype=torch.int32, device=scores.device)
        values, size = torch.empty((rows, k), device=scores.device), ctypes.c_size_t(0)

        def launch(memory: int | None) -> None:
            stream = torch.cuda.current_stream().cuda_stream
            outputs = indices.data_ptr(), values.data_ptr()
            code = run(scores.data_ptr(), rows, width, k, *outputs, memory, ctypes.addressof(size), stream)
            if code:
                raise RuntimeError(f"FlashInfer's top-k of {rows} rows ended with CUDA error {code}")

        key = rows, width, k
        if key not in scratch:
            launch(None)
            scratch[key] = torch.zeros(max(size.value, 1), dtype=torch.uint8, device=scores.device)
        size.value = scratch[key].numel()
        launch(scratch[key].data_ptr())
        return values, indices

    for rows in (2, 200):  # both of its algorithms
        scores = torch.rand((rows, 14336), device="cuda")
        values, indices = call(scores, 4096)
        expected = scores.topk(4096, dim=1).values
        same = torch.equal(values.sort(dim=1, descending=True).values, expected)
        if not (same and torch.equal(scores.gather(1, indices.long()), values)):
            raise LookupError(f"FlashInfer's top-k of {rows} rows is not torch's")
    return call


def main() -> int:
    """Builds the library; exit code 1 where it cannot be."""
    try:
        print(library(torch.cuda.get_device_capability() if torch.cuda.is_available() else (9, 0)))
    except LookupError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
