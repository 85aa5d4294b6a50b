"""What the tests of the ops share: every test runs on each backend that this machine has, and proves which one ran."""

import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch

from memoir_fast import backends, ops

_CPU = {"reference": ("reference", "cpu"), "cpu": ("cpu", "cpu")}
_GPU = {
    "gpu-reference": ("reference", "cuda"),
    "gpu-triton": ("triton", "cuda"),
    "gpu-cuda": ("cuda", "cuda"),
}
# Without a device the GPU's variants are not collected: hundreds of skips would hide the ones that matter.
_TARGETS = _CPU | _GPU if torch.cuda.is_available() else _CPU


class Backend(NamedTuple):
    """A backend and the device that its tensors lie on."""

    name: str
    device: str


@pytest.fixture(
    params=[
        pytest.param(target, id=name, marks=[pytest.mark.gpu] * (target[1] == "cuda"))
        for name, target in _TARGETS.items()
    ]
)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    """Each backend in turn, in force during the test. The module's `OP` names the op that it must have."""
    name, device = request.param
    found = backends.load(request.module.OP, name)
    if isinstance(found, str):
        pytest.skip(f"no {name} backend for {request.module.OP}: {found}")
    monkeypatch.setattr(backends, "_last", {})
    with backends.use(name):
        yield Backend(name, device)


@pytest.fixture
def op(request: pytest.FixtureRequest, backend: Backend, poison: None) -> Callable[..., Any]:
    """The public function named by the module's `OP`, with its outputs poisoned and its backend asserted."""
    return proven(request.module.OP, backend)


@pytest.fixture
def proven_op(backend: Backend, poison: None) -> Callable[[str], Callable[..., Any]]:
    """As `op`, for a function given by name."""
    return lambda name: proven(name, backend)


def proven(name: str, backend: Backend) -> Callable[..., Any]:
    function = getattr(ops, name)

    def call(*args: Any, **options: Any) -> Any:
        backends._last.pop(name, None)
        result = function(*args, **options)
        assert backends.last_used().get(name) == backend.name, f"{name} ran on {backends.last_used()}"
        return result

    return call


@pytest.fixture
def opcheck(backend: Backend) -> Callable[..., None]:
    """`torch.library.opcheck` with all its utilities on a registered op, given by name."""

    def check(name: str, *args: Any) -> None:
        results = torch.library.opcheck(getattr(torch.ops.memoir_fast, name).default, args)
        assert set(results) == {
            "test_schema",
            "test_autograd_registration",
            "test_faketensor",
            "test_aot_dispatch_dynamic",
        }
        assert set(results.values()) == {"SUCCESS"}
        assert backends.last_used()[name] == backend.name

    return check


@pytest.fixture
def same_compiled(request: pytest.FixtureRequest, backend: Backend) -> Callable[..., None]:
    """Compiles the module's public function whole and compares it, bit for bit, with itself run eagerly."""
    function = getattr(ops, request.module.OP)

    def check(*args: Any, compiler: str = "aot_eager") -> None:
        torch.compiler.reset()
        compiled = torch.compile(function, fullgraph=True, backend=compiler, dynamic=False)
        results = []
        for run in (compiled, function):
            backends._last.clear()
            results.append(run(*(copy.deepcopy(arg) for arg in args)))
            assert backends.last_used()[request.module.OP] == backend.name
        torch.testing.assert_close(*results, rtol=0, atol=0)

    return check
