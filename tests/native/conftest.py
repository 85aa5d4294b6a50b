"""The extension, its CPU paths, the emulation of its CUDA kernels, and inputs that are hard to get right."""

import ctypes
import functools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from memoir_fast import backends, native, ops  # noqa: F401  (ops: they are declared)
from memoir_fast.mask_format import pack
from memoir_fast.reference import masked_linear as reference

PATHS = ("avx512", "avx2", "portable")
CSRC = Path(__file__).resolve().parents[2] / "csrc"
EMULATE = Path(__file__).parent / "emulate"


@pytest.fixture(scope="session")
def extension():
    """The built extension; where it was not built, a skip with the build's own reason."""
    try:
        return native.extension()
    except ImportError as error:
        pytest.skip(str(error))


@pytest.fixture
def raw(extension):
    """The extension's torch ops, without the checks of memoir_fast.ops in front."""
    for op in extension.ops("cpu"):
        assert not isinstance(backends.load(op, "cpu"), str)  # it is defined then
    return torch.ops.memoir_fast_native


@pytest.fixture(params=PATHS)
def cpu_path(request: pytest.FixtureRequest, extension) -> Iterator[str]:
    """Every CPU path in turn, forced."""
    if not extension.cpu_features()[request.param]:
        pytest.skip(f"this CPU lacks the instructions of {request.param}")
    extension.set_cpu_path(request.param)
    assert extension.cpu_path() == request.param
    yield request.param
    extension.set_cpu_path("auto")


@pytest.fixture(params=[1, 2], ids="threads={}".format)
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def masks() -> Callable[..., torch.Tensor]:
    """masks(kind, rows, width): packed masks [rows, W] of one kind."""

    def bits(kind: str, rows: int, width: int) -> torch.Tensor:
        if kind == "zeros":
            return torch.zeros(rows, width, dtype=torch.bool)
        if kind == "ones":
            return torch.ones(rows, width, dtype=torch.bool)
        if kind == "single":
            return torch.arange(width) == torch.randint(width, (rows, 1))
        if kind == "tied":  # few distinct overlaps
            return (torch.arange(width) // 8 + torch.randint(3, (rows, 1))) % 3 == 0
        if kind == "duplicated":
            return (torch.rand(-(-rows // 3), width) < 0.3).repeat(3, 1)[:rows]
        return torch.rand(rows, width) < 0.3

    return lambda kind, rows, width: pack(bits(kind, rows, width))


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ctypes.CDLL]:
    """emulated(name, *flags): emulate/<name>.cpp with the CUDA kernels it includes, compiled for the CPU, once each.

    A CUDA thread is a fiber there; with -DEMULATE_THREADS a thread.
    """
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++ to compile the kernels for the CPU, there is none")
    always = ["-std=c++20", "-O2", *os.environ.get("CXXFLAGS", "").split(), "-shared", "-fPIC", "-pthread"]
    always += ["-DMEMOIR_FAST_EMULATE", "-Wno-unknown-pragmas", "-fno-strict-aliasing", f"-I{CSRC}", f"-I{EMULATE}"]

    @functools.cache
    def built(name: str, *flags: str) -> ctypes.CDLL:
        path = tmp_path_factory.mktemp("emulate") / f"{name}.so"
        subprocess.run([compiler, *always, *flags, EMULATE / f"{name}.cpp", "-o", path], check=True)
        return ctypes.CDLL(str(path))

    return built


@pytest.fixture
def linear_inputs() -> Callable[..., tuple[torch.Tensor, ...]]:
    """linear_inputs(batch, tokens, width, outputs, k, edits, dtype, device): masked_linear's inputs, drawn.

    Columns are ascending; the first sequence has the last edit, the others any or none.
    """

    def drawn(batch, tokens, width, outputs, k, edits, dtype, device="cpu"):
        x, memory = torch.randn(batch, tokens, width).to(dtype), torch.randn(width, outputs).to(dtype)
        columns = torch.stack([torch.randperm(width)[:k].sort().values for _ in range(edits)]).int()
        route = torch.randint(-1, edits, (batch,)).int()
        route[0] = edits - 1
        return tuple(tensor.to(device) for tensor in (x, memory, columns, route))

    return drawn


@pytest.fixture
def on_pages() -> Callable[..., tuple[torch.Tensor, ...]]:
    """on_pages(inputs, pages, only): the same product from a memory of several pages, edits on the first, last, others.

    Pages that no route names hold NaN. `only`: the pages to draw from.
    """

    def spread(inputs, pages, only=None):
        x, memory, columns, route = inputs
        width = len(memory)
        draw = torch.tensor(only if only is not None else range(pages))
        page = draw[torch.randint(len(draw), (len(columns),))]
        if only is None:
            page[-1], page[0] = pages - 1, 0
        table = memory.new_full((pages * width, memory.shape[1]), float("nan"))
        for edit in set(route.tolist()) & set(range(len(columns))):
            table[page[edit] * width : (page[edit] + 1) * width] = memory
        return x, table, columns + (page * width).int()[:, None], route

    return spread


@pytest.fixture
def assert_rounded_once() -> Callable[..., None]:
    """assert_rounded_once(y, inputs, base): within one rounding, and float32 accumulation, of the sum in float64."""

    def check(y, inputs, base=None):
        x, memory, columns, route = inputs
        exact = reference.masked_linear(x.double(), memory.double(), columns, route)
        size = reference.masked_linear(x.double().abs(), memory.double().abs(), columns, route)
        if base is not None:
            exact, size = exact + base.double(), size + base.double().abs()
        finfo = torch.finfo(y.dtype)
        allowed = finfo.eps * (exact.abs() + finfo.tiny) + (columns.shape[1] + 2) * 2**-23 * size
        assert ((y.double() - exact).abs() <= allowed).all()

    return check
