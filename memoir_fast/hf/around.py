"""`Around`: stands in the place of a model's method, and goes with the model where that is copied."""

import functools
from typing import Any, Protocol


class Methods(Protocol):
    """Who knows the model's own methods."""

    def method(self, name: str) -> Any:
        """The model's own method of that name."""


class Around:
    """Stands in the place of a model's method, and can be copied and pickled with the model."""

    def __init__(self, router: Methods, name: str, around: str) -> None:
        self._router, self._name, self._around = router, name, around
        functools.update_wrapper(self, router.method(name))
        del self.__wrapped__  # found when it is asked for: a copy has its own model's

    def __getattr__(self, name: str) -> Any:
        if name == "__wrapped__":  # signatures are read off it
            return self._router.method(self._name)
        raise AttributeError(name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._router, self._around)(self._router.method(self._name), *args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return object.__new__, (Around,), {"_router": self._router, "_name": self._name, "_around": self._around}
