"""What the kernel tests share: where the kernels run, seeded tensors in awkward layouts, poisoned memory.

Triton decides at import whether it interprets, so one process cannot both interpret kernels and compile them. A plain
`pytest` collects `test_interpreter.py`, which runs the other files here in a process of its own with
TRITON_INTERPRET=1, and the files that compile. On a machine with a CUDA device all run in place, on the device.
"""

import os
import random
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

_HERE = Path(__file__).parent
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED or not torch.cuda.is_available() else "cuda"
_COMPILE = ["test_interpreter.py", "test_ahead_of_time.py", "test_tuning.py"]
_RUN = [
    "test_code_route.py",
    "test_dispatch.py",
    "test_launch_table.py",
    "test_mask_columns.py",
    "test_mask_match.py",
    "test_mask_overlap.py",
    "test_masked_linear.py",
    "test_masked_linear_backward.py",
    "test_memory_update.py",
    "test_prompt_feature.py",
    "test_route_rows.py",
    "test_tophash.py",
]
if INTERPRETED:
    collect_ignore = _COMPILE
elif DEVICE == "cpu":
    collect_ignore = _RUN
_ONE_IN = 10  # random cases are run among a GPU's tests: each takes compilations of its own


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On a device, cases with names and some random ones are a GPU's tests; the others run where there is time."""
    for item in items if DEVICE == "cuda" else ():
        if item.path.parent == _HERE and item.path.name in _RUN:
            values = getattr(item, "callspec", None)
            if values is None or values.params.get("seed", 0) % _ONE_IN == 0:
                item.add_marker(pytest.mark.gpu)


class Draw:
    """Random sizes, tensors and layouts from one seed."""

    def __init__(self, seed: int) -> None:
        self._numbers = random.Random(seed)
        self._tensors = torch.Generator().manual_seed(seed)
        self.device = DEVICE
        self.interpreted = INTERPRETED

    def size(self, low: int, high: int) -> int:
        """A size from low to high, small ones more often."""
        return min(self._numbers.randint(low, high), self._numbers.randint(low, high))

    def pick(self, *choices):
        return self._numbers.choice(choices)

    def chance(self, share: float) -> bool:
        return self._numbers.random() < share

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(shape, generator=self._tensors).to(dtype).to(self.device)

    def uniform(self, *shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=self._tensors).to(self.device)

    def integers(self, low: int, high: int, *shape: int) -> torch.Tensor:
        """int32 from low to high - 1."""
        return torch.randint(low, high, shape, generator=self._tensors).int().to(self.device)

    def permutation(self, size: int) -> torch.Tensor:
        return torch.randperm(size, generator=self._tensors).int().to(self.device)

    def columns(self, edits: int, k: int, width: int) -> torch.Tensor:
        """int32 [edits, k], ascending and free of repeats within a row."""
        rows = [self.permutation(width)[:k].sort().values for _ in range(edits)]
        return torch.stack(rows) if rows else torch.empty((0, k), dtype=torch.int32, device=self.device)

    def masks(self, rows: int, words: int) -> torch.Tensor:
        return self.integers(-(2**31), 2**31 - 1, rows, words)

    def layout(self, tensor: torch.Tensor) -> torch.Tensor:
        """The same values as they are, as every other element of a larger buffer, or with transposed strides."""
        kind = self.pick("plain", "plain", "strided", "transposed")
        if kind == "plain" or tensor.dim() == 0:
            return tensor
        if kind == "transposed" and tensor.dim() >= 2:
            return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)
        return embedded(tensor)


def embedded(tensor: torch.Tensor) -> torch.Tensor:
    """A view with the same values inside a larger buffer whose other elements are poison."""
    buffer = torch.empty([2 * size + 1 for size in tensor.shape], dtype=tensor.dtype, device=tensor.device)
    buffer.fill_(float("nan") if tensor.is_floating_point() else 1)
    view = buffer[tuple(slice(0, 2 * size, 2) for size in tensor.shape)]
    return view.copy_(tensor)


@pytest.fixture
def draw(request: pytest.FixtureRequest) -> Draw:
    """Seeded by the test's own name and parameters, so that one failing case is run again by its id."""
    return Draw(zlib.crc32(request.node.name.encode()))


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """torch.empty hands out NaN and extreme integers: an element that a kernel leaves unwritten shows."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def assert_product():
    """Holds a sum of products against its float64 value: one rounding of the result, float32 rounding inside."""

    def check(actual: torch.Tensor, exact: torch.Tensor, magnitude: torch.Tensor, terms: int) -> None:
        """`magnitude` is the sum of the terms' absolute values, which bounds what float32 sums can lose."""
        assert actual.shape == exact.shape
        rounding = torch.finfo(actual.dtype).eps * (1 if INTERPRETED and actual.dtype == torch.bfloat16 else 0.5)
        allowed = 1.01 * rounding * exact.abs() + (terms + 4) * 2**-24 * magnitude + torch.finfo(actual.dtype).tiny
        error = (actual.double() - exact).abs()
        worst = (error - allowed).argmax() if error.numel() else None
        assert bool((error <= allowed).all()), (
            f"got {actual.flatten()[worst]}, expected {exact.flatten()[worst]} +- {allowed.flatten()[worst]}"
        )

    return check
