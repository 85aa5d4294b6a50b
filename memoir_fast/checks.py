"""The checks that ops and modules share. Every message says what was expected and what came."""

import functools
from collections.abc import Iterable

import torch

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LARGEST_WIDTH = 65536
_FEW = 32  # elements


def describe(value: object) -> str:
    """`float32 [3, 4096]` for a tensor, the type's name for anything else."""
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return type(value).__name__


def tensor(
    name: str, value: torch.Tensor, dtypes: torch.dtype | Iterable[torch.dtype], shape: str, **sizes: int
) -> None:
    """Checks that `value` is a tensor of one of `dtypes` and of `shape`, given as names, e.g. "B S D".

    A name with a size in `sizes` must have that size; other names stand for any size. A check stands before every call
    of an op, so one that is passed has to be quick.
    """
    axes = _axes(shape)
    allowed = (dtypes,) if isinstance(dtypes, torch.dtype) else tuple(dtypes)
    if not isinstance(value, torch.Tensor) or value.dtype not in allowed:
        raise TypeError(_mismatch(name, value, allowed, axes, sizes))
    found = value.shape
    if len(found) != len(axes):
        raise ValueError(_mismatch(name, value, allowed, axes, sizes))
    for axis, size in sizes.items():
        if found[axes.index(axis)] != size:
            raise ValueError(_mismatch(name, value, allowed, axes, sizes))


@functools.cache
def _axes(shape: str) -> tuple[str, ...]:
    return tuple(shape.split())


def _mismatch(
    name: str, value: object, allowed: tuple[torch.dtype, ...], axes: tuple[str, ...], sizes: dict[str, int]
) -> str:
    expected = "/".join(str(dtype).removeprefix("torch.") for dtype in allowed)
    wanted = ", ".join(str(sizes.get(axis, axis)) for axis in axes)
    return f"{name} must be {expected} [{wanted}], got {describe(value)}"


def same_device(**tensors: torch.Tensor) -> None:
    """Checks that all tensors lie on one device."""
    if len({value.device for value in tensors.values()}) > 1:
        places = ", ".join(f"{name} on {value.device}" for name, value in tensors.items())
        raise ValueError(f"all tensors must be on one device, got {places}")


def readable(value: torch.Tensor) -> bool:
    """True where values can be looked at without stopping a device: a real CPU tensor, outside of tracing."""
    return (
        value.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not isinstance(value, torch._subclasses.FakeTensor)
        and not torch._C._functorch.is_functorch_wrapped_tensor(value)
    )


def index_range(name: str, value: torch.Tensor, low: int, high: int) -> None:
    """Checks low <= value < high for every element of a CPU tensor; values on a device are checked by the kernel."""
    if readable(value) and value.numel():
        if value.numel() == 1:
            smallest = largest = int(value)
        elif value.numel() <= _FEW:  # reading them is quicker than two reductions
            values = value.flatten().tolist()
            smallest, largest = min(values), max(values)
        else:
            smallest, largest = (int(bound) for bound in torch.aminmax(value))
        if smallest < low or largest >= high:
            raise ValueError(f"{name} must lie in [{low}, {high}), got values from {smallest} to {largest}")
