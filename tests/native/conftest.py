"""The extension, its CPU paths and masks that are hard to get right."""

from collections.abc import Callable, Iterator

import pytest
import torch

from memoir_fast import native
from memoir_fast.reference.tophash import pack

PATHS = ("avx512", "avx2", "portable")


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
