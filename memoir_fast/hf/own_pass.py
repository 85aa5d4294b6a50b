"""`OwnPass`: forward passes that go their own way through a model which other threads use meanwhile."""

import threading
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar, Token
from typing import Any

import torch
from torch import nn

from memoir_fast.hf.beside import beside

_current: ContextVar["OwnPass | None"] = ContextVar("memoir_fast_own_pass", default=None)


class OwnPass:
    """Within the block, hooks and detours that are laid on modules hold for the passes of this thread or task alone.

    Every other pass goes on as if they were not there. All are taken off at the end.
    """

    def __enter__(self) -> "OwnPass":
        self._changes = ExitStack()
        self._token: Token[OwnPass | None] = _current.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._changes.close()
        finally:
            _current.reset(self._token)

    @staticmethod
    def current() -> "OwnPass | None":
        """The one of this thread or task, if any."""
        return _current.get()

    def before(self, module: nn.Module, hook: Callable[..., Any], **options: Any) -> None:
        """Calls `hook` as `register_forward_pre_hook` does."""
        self._changes.callback(module.register_forward_pre_hook(_Hook(self, hook), **options).remove)

    def after(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        """Calls `hook` as `register_forward_hook` does."""
        self._changes.callback(module.register_forward_hook(_Hook(self, hook)).remove)

    def instead(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        """Calls `forward` in place of the module's own."""
        own = module.__dict__.get("forward")
        self._changes.callback(_restore, module, own)
        module.forward = _Detour(self, module, own, forward)  # type: ignore[method-assign]


_lock = threading.Lock()
_uncompiled = ExitStack()  # what ends with the last block in which nothing compiled runs
_blocks = 0


@contextmanager
def uncompiled(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within the block, passes through these modules see hooks and detours, also where one is compiled in place.

    Compiled code would pass them over. torch knows no other way than to compile nothing meanwhile, in any thread: then
    all that is compiled runs as it was written. Where none of the modules is compiled, nothing is changed. Beside
    continuous batching they take turns with its passes.
    """
    global _blocks
    if not any(_is_compiled(module) for module in modules):
        with beside():
            yield
        return
    with _lock:
        _blocks += 1
        if _blocks == 1:
            _uncompiled.enter_context(torch.compiler.set_stance("force_eager"))
    try:
        with beside():
            yield
    finally:
        with _lock:
            _blocks -= 1
            if _blocks == 0:
                _uncompiled.close()


def _is_compiled(module: nn.Module) -> bool:
    """Whether `module.compile()` was called, or its forward was replaced by a compiled one."""
    return module._compiled_call_impl is not None or hasattr(module.forward, "_torchdynamo_orig_callable")


class _Hook:
    """A hook that runs in its owner's passes alone."""

    def __init__(self, owner: object, function: Callable[..., Any] | None) -> None:
        self._owner, self._function = owner, function

    def __call__(self, *args: Any) -> Any:
        """With any arguments: a hook that is taken off between two steps of another pass is called without keywords."""
        if _current.get() is self._owner and self._function is not None:
            return self._function(*args)
        return None

    def __reduce__(self) -> tuple[Any, ...]:
        return _Hook, (None, None)  # a model copied meanwhile has nobody who learns


class _Detour:
    """A replacement of a module's `forward` that runs in its owner's passes alone."""

    def __init__(self, owner: OwnPass, module: nn.Module, own: Any, instead: Callable[..., Any]) -> None:
        self._owner, self._module, self._own, self._instead = owner, module, own, instead
        self.__wrapped__ = module.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        forward = self._instead if _current.get() is self._owner else self.__wrapped__
        return forward(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:  # a model copied meanwhile goes its own way
        return (_class_forward, (self._module,)) if self._own is None else (_same, (self._own,))


def _class_forward(module: nn.Module) -> Any:
    return types.MethodType(type(module).forward, module)


def _same(value: Any) -> Any:
    return value


def _restore(module: nn.Module, own: Any) -> None:
    if own is None:
        module.__dict__.pop("forward", None)
    else:
        module.forward = own
