"""Launch configurations: a table by GPU name, shipped in launch_table.json, over which a user's own table is laid.

A table maps GPU name -> kernel -> key -> configuration. A key names a shape ("D14336") or an element size ("2 bytes");
"*" stands for every GPU and for every shape. `memoir tune` writes the user's table; nothing is ever timed here, so
an import, a first call and a graph capture cost the same.
"""

import functools
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

Config = dict[str, int]
_overrides: dict[str, Config] = {}
_SHIPPED = Path(__file__).with_name("launch_table.json")
logger = logging.getLogger("memoir_fast")


def user_table() -> Path:
    """Where the user's own table lies: MEMOIR_FAST_LAUNCH_TABLE, else in the user's cache folder."""
    named = os.environ.get("MEMOIR_FAST_LAUNCH_TABLE")
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(named) if named else Path(cache) / "memoir_fast" / "launch_table.json"


def read_user_table() -> dict[str, Any]:
    """The user's table, empty where there is none. One that cannot be read is passed over with a warning."""
    path = user_table()
    try:
        table = json.loads(path.read_text())
        _check(table)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        logger.warning("launch table %s is passed over: %s", path, error)
        return {}
    return table


def _check(table: Any) -> None:
    """Raises ValueError where a table is not GPU name -> kernel -> key -> parameter -> positive integer."""
    levels = [table]
    for depth in ("GPU names", "kernels", "keys", "parameters"):
        if not all(isinstance(level, dict) for level in levels):
            raise ValueError(f"expected an object of {depth}")
        levels = [value for level in levels for value in level.values()]
    wrong = [value for value in levels if type(value) is not int or value < 1]
    if wrong:
        raise ValueError(f"a parameter must be a positive integer, got {wrong[0]!r}")


@functools.cache
def _tables() -> tuple[dict[str, Any], dict[str, Any]]:
    return read_user_table(), json.loads(_SHIPPED.read_text())


@functools.cache
def _device_name(index: int | None) -> str:
    return "*" if index is None else torch.cuda.get_device_name(index)


@functools.cache
def _capability(index: int | None) -> int:
    return 0 if index is None else torch.cuda.get_device_capability(index)[0]


def admits(tensor: torch.Tensor) -> bool:
    """Whether a kernel on the tensor's device can admit the next one before it ends (compute capability 9.0 and up)."""
    return _capability(tensor.device.index if tensor.is_cuda else None) >= 9


@functools.cache
def lookup(kernel: str, device_name: str, keys: tuple[str, ...]) -> Config:
    """The configuration of `kernel`: the user's table before the shipped one, this GPU before all, `keys` in order.

    An entry overrides only the parameters that it names.
    """
    config: Config = {}
    for table in reversed(_tables()):
        for name in ("*", device_name):
            entries = table.get(name, {}).get(kernel, {})
            for key in ("*", *reversed(keys)):
                config |= entries.get(key, {})
    return config


@contextmanager
def override(kernel: str, parameters: Config) -> Iterator[None]:
    """Within the block, `parameters` stand above both tables for `kernel`: what tuning tries."""
    _overrides[kernel] = parameters
    try:
        yield
    finally:
        del _overrides[kernel]


def config(kernel: str, tensor: torch.Tensor, *shape_keys: str) -> Config:
    """The configuration for a launch on the tensor's device; `shape_keys` go from the most to the least special."""
    keys = (*shape_keys, f"{tensor.element_size()} bytes")
    found = lookup(kernel, _device_name(tensor.device.index if tensor.is_cuda else None), keys)
    return found | _overrides[kernel] if kernel in _overrides else found


def options(config: Config) -> dict[str, Any]:
    """The compiler options of a configuration. Fused multiply-add is asked for: Triton's default changes with 3.10."""
    return {name: config[name] for name in ("num_warps", "num_stages") if name in config} | {"enable_fp_fusion": True}


def forget() -> None:
    """Reads the tables again at the next launch; called after a table was written."""
    _tables.cache_clear()
    lookup.cache_clear()
