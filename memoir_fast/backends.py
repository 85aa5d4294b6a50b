"""Which backend serves an op, with the reason for every one that cannot.

`MEMOIR_FAST_BACKEND` names the choice: `auto` (the default) takes the fastest that works for the tensors at hand; a
name, or names in order of preference separated by commas, takes only those and raises where none can serve.
`use(...)` does the same for a block of code.
"""

import functools
import importlib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch

from memoir_fast.errors import BackendError

logger = logging.getLogger("memoir_fast")

OPS = (
    "prompt_feature",
    "tophash",
    "mask_columns",
    "mask_overlap",
    "mask_match",
    "masked_linear",
    "masked_linear_add_",
    "masked_linear_backward",
    "memory_update",
)
BACKENDS = ("reference", "cpu", "triton", "cuda")
_AUTO = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "reference")}
_FILES = {"masked_linear_add_": "masked_linear", "masked_linear_backward": "masked_linear"}

_chosen: ContextVar[str | None] = ContextVar("memoir_fast_backend", default=None)
_last: dict[str, str] = {}
_said: set[tuple[str, str, str]] = set()


class Implementation(NamedTuple):
    """One op on one backend: `run` has the op's signature; `unsupported(*args)` says why it cannot, or None."""

    run: Callable[..., Any]
    unsupported: Callable[..., str | None]


class Status(NamedTuple):
    """One row of `memoir env`: `reason` is None where the backend is available."""

    op: str
    backend: str
    reason: str | None


def _only_on(device: str) -> Callable[..., str | None]:
    def unsupported(first: torch.Tensor, *_: Any) -> str | None:
        return None if first.device.type == device else f"needs {device} tensors, got {first.device.type}"

    return unsupported


@functools.cache
def load(op: str, backend: str) -> Implementation | str:
    """The implementation of `op` by `backend`, or the reason why there is none on this machine."""
    try:
        if backend == "reference":
            module = importlib.import_module(f"memoir_fast.reference.{_FILES.get(op, op)}")
            return Implementation(getattr(module, op), lambda *_: None)
        if backend == "triton":
            module = importlib.import_module(f"memoir_fast.kernels.{_FILES.get(op, op)}")
            return Implementation(getattr(module, op), module.unsupported)
        native = importlib.import_module("memoir_fast.native")
        return Implementation(native.load(op, backend), native.limits(op, backend) or _only_on(backend))
    except (ImportError, AttributeError, OSError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"


def requested() -> str:
    """The choice in force: that of the innermost `use`, else `MEMOIR_FAST_BACKEND`, else `auto`."""
    return _chosen.get() or os.environ.get("MEMOIR_FAST_BACKEND") or "auto"


@functools.cache
def _preference(choice: str, device: str) -> tuple[str, ...]:
    if choice == "auto":
        return _AUTO.get(device, ("reference",))
    names = tuple(name.strip() for name in choice.split(","))
    wrong = [name for name in names if name not in BACKENDS]
    if wrong:
        raise BackendError(f"a backend is one of auto, {', '.join(BACKENDS)}; got {wrong[0]!r}")
    return names


def run(op: str, *args: Any) -> Any:
    """Runs `op` on the first backend of the choice in force that can serve these arguments."""
    choice = requested()
    reasons = []
    for backend in _preference(choice, args[0].device.type):
        found = load(op, backend)
        reason = found if isinstance(found, str) else found.unsupported(*args)
        if reason is None:
            _last[op] = backend
            return found.run(*args)  # type: ignore[union-attr]
        reasons.append(f"{backend}: {reason}")
        _say_once(op, backend, reason)
    raise BackendError(f"no backend of {choice!r} can serve {op}: {'; '.join(reasons)}")


def native_kernel(op: str, args: tuple[Any, ...]) -> Callable[..., Any] | None:
    """The extension's kernel of `op` where it is the first choice and can be called at once; it counts as used."""
    first = args[0]
    device = "cuda" if first.is_cuda else "cpu" if first.is_cpu else ""  # quicker than naming the device
    run, may = _native_kernel(op, requested(), device)
    if run is None or (may is not None and not may(*args)):
        return None
    _last[op] = device
    return run


@functools.cache
def _native_kernel(op: str, choice: str, device: str) -> tuple[Callable[..., Any] | None, Callable[..., bool] | None]:
    if not device or _preference(choice, device)[0] != device:
        return None, None
    found = load(op, device)
    if isinstance(found, str):
        return None, None
    return found.run, importlib.import_module("memoir_fast.native").at_once(op, device)


def _say_once(op: str, backend: str, reason: str) -> None:
    if (op, backend, reason) not in _said:
        _said.add((op, backend, reason))
        logger.debug("%s: backend %s passed over: %s", op, backend, reason)


@contextmanager
def use(choice: str) -> Iterator[None]:
    """Within the block, ops run on `choice` (a backend, several separated by commas, or `auto`).

    Example:
        >>> from memoir_fast import backends
        >>> with backends.use("reference"):
        ...     backends.requested()
        'reference'
    """
    _preference(choice, "cpu")
    token = _chosen.set(choice)
    try:
        yield
    finally:
        _chosen.reset(token)


def last_used() -> dict[str, str]:
    """The backend that served the latest call of each op in this process, by op."""
    return dict(_last)


def report() -> list[Status]:
    """Every op on every backend: available, or why not."""
    rows = []
    for op in OPS:
        for backend in BACKENDS:
            found = load(op, backend)
            rows.append(Status(op, backend, found if isinstance(found, str) else _machine_lacks(backend)))
    return rows


def _machine_lacks(backend: str) -> str | None:
    if backend == "cuda" and not torch.cuda.is_available():
        return "built, but torch sees no CUDA device"
    if backend == "triton" and not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        return "torch sees no CUDA device (TRITON_INTERPRET=1 runs the kernels on the CPU)"
    return None
