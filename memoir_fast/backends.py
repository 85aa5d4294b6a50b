"""Which backend serves an op, with the reason for every one that cannot.

`MEMOIR_FAST_BACKEND` names the choice: `auto` (the default) takes the fastest that works for the tensors at hand; a
name, or names in order of preference separated by commas, takes only those and raises where none can serve.
`use(...)` does the same for a block of code.
"""

import functools
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch

from memoir_fast import native
from memoir_fast.errors import BackendError

logger = logging.getLogger("memoir_fast")

OPS: list[str] = []
"""The ops that are declared: all of `memoir_fast.ops`, once that is imported."""
BACKENDS = ("reference", "cpu", "triton", "cuda")
_AUTO = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "reference")}

_chosen: ContextVar[str | None] = ContextVar("memoir_fast_backend", default=None)
_last: dict[str, str] = {}
_said: set[tuple[str, str, str]] = set()


class Implementation(NamedTuple):
    """One op on one backend: `run` has the op's signature; `unsupported(*args)` says why it cannot, or None."""

    run: Callable[..., Any]
    unsupported: Callable[..., str | None]


class Native(NamedTuple):
    """What the extension's kernel of one op on one device serves."""

    unsupported: Callable[..., str | None] | None = None
    """Says why it cannot serve a call, or None; by default it serves all tensors of its device."""
    at_once: Callable[..., bool] | None = None
    """Whether a call may go to it before any check; by default where it is not unsupported. A kernel checks its
    arguments itself: this only spares it, and the caller an exception, what it often could not serve."""
    wrap: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None
    """Makes of the kernel what is called in its place."""


class Declared(NamedTuple):
    """An op with its implementations; see `ops.registration.register`."""

    schema: str
    fake: Callable[..., Any]
    reference: Callable[..., Any]
    triton: Callable[[], tuple[Callable[..., Any], Callable[..., str | None]]]
    native: dict[str, Native | None]


class Status(NamedTuple):
    """One row of `memoir env`: `reason` is None where the backend is available."""

    op: str
    backend: str
    reason: str | None


_declared: dict[str, Declared] = {}


def _only_on(device: str) -> Callable[..., str | None]:
    def unsupported(first: torch.Tensor, *_: Any) -> str | None:
        return None if first.device.type == device else f"needs {device} tensors, got {first.device.type}"

    return unsupported


def declare(op: str, declared: Declared) -> None:
    """Makes an op known, with what implements it."""
    _declared[op] = declared
    OPS.append(op)


@functools.cache
def load(op: str, backend: str) -> Implementation | str:
    """The implementation of `op` by `backend`, or the reason why there is none on this machine."""
    declared = _declared[op]
    try:
        if backend == "reference":
            return Implementation(declared.reference, lambda *_: None)
        if backend == "triton":
            return Implementation(*declared.triton())
        own = declared.native[backend]
        run = native.load(op, backend, declared.schema, declared.fake)
        if own is None:
            return f"the extension's {backend} kernel of {op} is not declared"
        return Implementation(own.wrap(run) if own.wrap else run, own.unsupported or _only_on(backend))
    except (ImportError, AttributeError, OSError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"


def limits(op: str, device: str) -> Callable[..., str | None] | None:
    """What says why the extension's kernel on `device` cannot serve a call; None where it serves all tensors there."""
    own = _declared[op].native[device]
    return own.unsupported if own else None


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
    own = _declared[op].native[device]
    assert own is not None
    refuses = own.unsupported
    return found.run, own.at_once or (refuses and (lambda *args: refuses(*args) is None))


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
