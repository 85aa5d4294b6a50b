"""What the tests of the ops share: every test runs on each backend that this machine has, and proves which one ran."""

import copy
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch

from memoir_fast import backends, ops

_KERNELS = {
    "reference": set(backends.OPS),
    "triton": set(backends.OPS),
    "cpu": set(backends.OPS) - {"masked_linear_backward", "memory_update"},
    "cuda": set(backends.OPS) - {"masked_linear_backward", "memory_update"},
}
# Serves outputs in whole pieces of 16 bytes only: tests/native/test_masked_linear_cuda.py has calls that it takes.
_TESTED_APART = {("masked_linear", "cuda"), ("masked_linear_add_", "cuda")}
_TARGETS = {"reference": ("reference", "cpu"), "cpu": ("cpu", "cpu")}
if os.environ.get("TRITON_INTERPRET") == "1":
    _TARGETS["triton"] = ("triton", "cpu")
elif torch.cuda.is_available():  # else not collected: hundreds of skips would hide those that matter
    _TARGETS |= {f"gpu-{name}": (name, "cuda") for name in ("reference", "triton", "cuda")}


class Backend(NamedTuple):
    """A backend and the device that its tensors lie on."""

    name: str
    device: str


def op_of(test: pytest.Function) -> str:
    """The op that a test is about: that of its mark `op`, else the module's `OP`."""
    mark = test.get_closest_marker("op")
    return mark.args[0] if mark else test.module.OP


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `backend` runs on each one that is meant to have its op."""
    if "backend" not in metafunc.fixturenames:
        return
    op = op_of(metafunc.definition)
    targets = [
        pytest.param(Backend(*target), id=name, marks=[pytest.mark.gpu] * (target[1] == "cuda"))
        for name, target in _TARGETS.items()
        if op in _KERNELS[target[0]] and (op, target[0]) not in _TESTED_APART
    ]
    metafunc.parametrize("backend", targets, indirect=True)


@pytest.fixture
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    """Each backend in turn, in force during the test; skipped where this machine did not build it."""
    op = op_of(request.node)
    found = backends.load(op, request.param.name)
    if isinstance(found, str):
        pytest.skip(f"no {request.param.name} backend for {op}: {found}")
    dtypes = [value for value in request.node.callspec.params.values() if isinstance(value, torch.dtype)]
    if request.param.name == "triton" and torch.float64 in dtypes:
        pytest.skip("the Triton kernels serve no float64")
    monkeypatch.setattr(backends, "_last", {})
    with backends.use(request.param.name):
        yield request.param


@pytest.fixture
def kernels_meant() -> dict[str, set[str]]:
    """Backend -> the ops that it is meant to have a kernel for."""
    return _KERNELS


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
        _skip_what_is_left_to_triton(name, backend, args)
        backends._last.pop(name, None)
        result = function(*args, **options)
        assert backends.last_used().get(name) == backend.name, f"{name} ran on {backends.last_used()}"
        return result

    return call


def _skip_what_is_left_to_triton(name: str, backend: Backend, args: tuple[Any, ...]) -> None:
    """The CUDA kernels of these take no very wide or oddly strided inputs, which the next backend serves."""
    if backend.name == "cuda" and name in ("tophash", "prompt_feature"):
        tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
        reason = backends.limits(name, "cuda")(*tensors) if len(tensors) > 1 and tensors[0].is_cuda else None
        if reason is not None:
            pytest.skip(f"the CUDA kernel of {name} leaves this to Triton: {reason}")


@pytest.fixture
def opcheck(backend: Backend) -> Callable[..., None]:
    """`torch.library.opcheck` with all its utilities on a registered op, given by name."""

    def check(name: str, *args: Any) -> None:
        _skip_what_is_left_to_triton(name, backend, args)
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
        _skip_what_is_left_to_triton(request.module.OP, backend, args)
        torch.compiler.reset()
        compiled = torch.compile(function, fullgraph=True, backend=compiler, dynamic=False)
        results = []
        for run in (compiled, function):
            backends._last.clear()
            results.append(run(*(copy.deepcopy(arg) for arg in args)))
            assert backends.last_used()[request.module.OP] == backend.name
        torch.testing.assert_close(*results, rtol=0, atol=0)

    return check
