"""`OwnPass`: forward passes that go their own way through a model which other threads use meanwhile."""

import functools
import threading
import types
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar, Token
from typing import Any

import torch
from torch import nn

_current: ContextVar["OwnPass | None"] = ContextVar("memoir_fast_own_pass", default=None)


class OwnPass:
    """Within the block, `model` is a twin of a model: it has the same weights, and hooks and detours of its own.

    The model itself stays as it is, so that no other pass meets them, and nothing is compiled anew on their account.

    Args:
        model: the model that is passed through.
        through: its modules from the model itself to those that get hooks or detours, as `ancestors` gives them. These
            have twins, which are not compiled; all others are the model's own.
    """

    def __init__(self, model: nn.Module | None = None, through: Collection[nn.Module] = ()) -> None:
        self._through = through
        self._twins: dict[nn.Module, nn.Module] = {}
        self.model: Any = None if model is None else self._twin(model)

    def __enter__(self) -> "OwnPass":
        self._token: Token[OwnPass | None] = _current.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        _current.reset(self._token)

    @staticmethod
    def current() -> "OwnPass | None":
        """The one of this thread or task, if any."""
        return _current.get()

    def before(self, module: nn.Module, hook: Callable[..., Any], **options: Any) -> None:
        """Calls `hook` as `register_forward_pre_hook` does."""
        self._twins[module].register_forward_pre_hook(hook, **options)

    def after(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        """Calls `hook` as `register_forward_hook` does."""
        self._twins[module].register_forward_hook(hook)

    def instead(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        """Calls `forward` in place of the module's own."""
        self._twins[module].forward = forward  # type: ignore[method-assign]

    def _twin(self, module: nn.Module) -> nn.Module:
        if module not in self._through:
            return module
        if module not in self._twins:
            twin = self._twins[module] = object.__new__(type(module))
            for name, value in module.__dict__.items():
                hooks = name.startswith(("_forward_hooks", "_forward_pre_hooks"))
                twin.__dict__[name] = value.copy() if hooks else _rebound(value, module, twin)
            children = ((name, child) for name, child in module._modules.items())
            twin.__dict__["_modules"] = {name: child and self._twin(child) for name, child in children}
            twin.__dict__["_compiled_call_impl"] = None
        return self._twins[module]


def ancestors(model: nn.Module, modules: Collection[nn.Module]) -> set[nn.Module]:
    """Those of a model's modules that are among `modules` or compiled in place, or hold such a one."""
    found: dict[nn.Module, bool] = {}

    def look(module: nn.Module) -> bool:
        if module not in found:
            inner = [look(child) for child in module._modules.values() if child is not None]
            found[module] = module in modules or any(inner) or _is_compiled(module)
        return found[module]

    look(model)
    return {module for module, holds in found.items() if holds}


def _rebound(value: Any, module: nn.Module, twin: nn.Module) -> Any:
    """An attribute of a module as its twin has it: bound to the twin, where it was to the module, and not compiled."""
    value = getattr(value, "_torchdynamo_orig_callable", value)
    if isinstance(value, types.MethodType) and value.__self__ is module:
        return types.MethodType(value.__func__, twin)
    if isinstance(value, functools.partial) and module in value.args:
        args = (twin if one is module else one for one in value.args)
        return functools.partial(value.func, *args, **value.keywords)
    return value


_lock = threading.Lock()
_uncompiled = ExitStack()  # what ends with the last block in which nothing compiled runs
_blocks = 0


@contextmanager
def uncompiled(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within the block, passes through these modules see hooks and detours, also where one is compiled in place.

    Compiled code would pass them over. torch knows no other way than to compile nothing meanwhile, in any thread: then
    all that is compiled runs as it was written. Where none of the modules is compiled, nothing is changed.
    """
    global _blocks
    if not any(_is_compiled(module) for module in modules):
        yield
        return
    with _lock:
        _blocks += 1
        if _blocks == 1:
            _uncompiled.enter_context(torch.compiler.set_stance("force_eager"))
    try:
        yield
    finally:
        with _lock:
            _blocks -= 1
            if _blocks == 0:
                _uncompiled.close()


def _is_compiled(module: nn.Module) -> bool:
    """Whether `module.compile()` was called, or its forward was replaced by a compiled one."""
    return module._compiled_call_impl is not None or hasattr(module.forward, "_torchdynamo_orig_callable")
