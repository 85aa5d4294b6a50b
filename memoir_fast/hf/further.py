"""Which further layers a memory is added to, and whether it can be."""

from typing import Any

from torch import nn

from memoir_fast.config import MemoirConfig
from memoir_fast.errors import UnsupportedModelError
from memoir_fast.hf.partial_forward import blocks_around
from memoir_fast.hf.presets import find_layer, plain_model, require_all_tokens
from memoir_fast.modules.base_layer import device_beside, dtype_beside
from memoir_fast.modules.memoir_linear import linear_shape


def with_further(config: MemoirConfig, model: nn.Module) -> MemoirConfig:
    """The settings with the names of the further layers, which are there and in order; see `MemoirConfig.further`.

    Args:
        config (MemoirConfig): as `presets.complete` gives it.
        model: the model, without a memory.

    Raises:
        ValueError: a layer does not exist, or lies in no block of its own behind those before it.
        UnsupportedModelError: a layer belongs to one of several experts, or has other inputs than the edited layer, or
            is elsewhere or of another dtype.
    """
    if not config.further:
        return config
    first = find_layer(model, config.layer or "")
    blocks, before = blocks_around(model, first)
    names = _next(config, model, blocks, before) if isinstance(config.further, int) else tuple(config.further)
    for name in names:
        require_all_tokens(name)
        layer = find_layer(model, name)
        own, index = blocks_around(model, layer)
        if own is not blocks or index <= before:
            raise ValueError(
                f"further layers must lie in blocks of their own, in the order of the model behind {config.layer!r}, "
                f"got {', '.join(names)}"
            )
        before = index
        _require_alike(first, layer, name)
    return config.replace(further=names)


def _next(config: MemoirConfig, model: Any, blocks: nn.ModuleList, index: int) -> tuple[str, ...]:
    """The names of so many layers as the edited one, in the blocks that follow its own."""
    count, left = int(config.further), len(blocks) - 1 - index  # type: ignore[arg-type]
    if count > left:
        raise ValueError(
            f"further must be at most {left}, the blocks that follow the layer {config.layer!r}, got {count}: name an "
            "earlier layer"
        )
    place = next(name for name, module in plain_model(model).named_modules() if module is blocks)
    rest = (config.layer or "").removeprefix(f"{place}.{index}")
    return tuple(f"{place}.{index + one}{rest}" for one in range(1, count + 1))


def _require_alike(first: Any, layer: Any, name: str) -> None:
    """UnsupportedModelError where the columns, or the table, of the edited layer's memory cannot be this layer's."""
    pairs = {
        "inputs": (linear_shape(first)[0], linear_shape(layer)[0]),
        "device": (device_beside(first), device_beside(layer)),
        "dtype": (dtype_beside(first), dtype_beside(layer)),
    }
    for what, (expected, got) in pairs.items():
        if expected != got:
            raise UnsupportedModelError(
                f"further layers must have the edited layer's {what}, {expected}; {name!r} has {got}: leave it out"
            )
