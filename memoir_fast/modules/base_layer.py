"""What a memory asks of the layer beside it: where its weight is, however it is packed, and where it computes."""

from typing import Any

import torch

from memoir_fast.errors import MemoirError, UnsupportedModelError


class AroundBase:
    """A module around a base layer, whose weight and bias it has."""

    base: Any

    @property
    def weight(self) -> torch.Tensor:
        """The base layer's weight."""
        return self.base.weight  # type: ignore[no-any-return]

    @property
    def bias(self) -> torch.Tensor | None:
        """The base layer's bias."""
        return self.base.bias  # type: ignore[no-any-return]

    def __setattr__(self, name: str, value: Any) -> None:
        """What merges adapters into a layer, or packs it anew, gives it another weight: that is the base layer's.

        UnsupportedModelError where an adapter is put around the base layer.
        """
        if name in ("weight", "bias"):
            setattr(self.base, name, value)
            return
        if name == "base" and getattr(value, "base_layer", None) is self.__dict__.get("_modules", {}).get(
            "base", value
        ):
            raise UnsupportedModelError(
                f"an adapter (a {type(value).__name__}) cannot be put inside of a layer that has a memory, where its "
                "weights would be left out of what PEFT saves: put adapters on first and the memory last, or leave "
                "this layer out, e.g. by exclude_modules=['base']"
            )
        super().__setattr__(name, value)


def weight_of(layer: Any) -> torch.Tensor:
    """A linear layer's weight as it is stored; where it goes by another name, the largest tensor of the layer.

    Raises:
        TypeError: the layer holds no tensor.
    """
    weight = getattr(layer, "weight", None)
    if isinstance(weight, torch.Tensor):
        return weight
    stored = [*layer.parameters(), *layer.buffers()]
    if not stored:
        raise TypeError(
            f"the edited layer must hold a weight, a {type(layer).__module__}.{type(layer).__name__} holds no tensor: "
            "quantise weights alone, e.g. by torchao's Int8WeightOnlyConfig"
        )
    return max(stored, key=torch.Tensor.numel)


def dtype_beside(layer: Any) -> torch.dtype:
    """The memory's dtype beside a layer: its weight's, or torch's default where that is packed or of a single byte."""
    dtype = weight_of(layer).dtype
    return dtype if dtype.is_floating_point and dtype.itemsize > 1 else torch.get_default_dtype()


def device_beside(layer: Any) -> torch.device:
    """Where a layer computes: where its weight is, or where accelerate brings it to where it is offloaded."""
    device = weight_of(layer).device
    return executed_on(layer, device) if device.type == "meta" else device


def offloaded(layer: Any) -> bool:
    """Whether a layer's weights are elsewhere until they are needed."""
    return weight_of(layer).device.type == "meta"


def require_as_attached(layer: Any) -> None:
    """MemoirError where the base layer's weights went elsewhere after the memory was put on.

    accelerate reads offloaded weights by the names of modules, and goes by those of the state dict, which are the plain
    model's.

    Args:
        layer (MemoirLinear): the edited layer.
    """
    for one in (layer, *layer.further):
        if one.offloaded or not offloaded(one.base) or not any(hasattr(part, "_hf_hook") for part in one.modules()):
            continue
        raise MemoirError(
            "the model's weights were offloaded after its memory was put on, where they are not found again: save the "
            "memory, load the model anew with its device_map, and Memoir.from_pretrained(model, tokenizer, folder)"
        )


def executed_on(module: Any, default: torch.device) -> torch.device:
    """Where accelerate's hook on a module, or on one inside of it, brings what it is given; `default` without one."""
    for part in module.modules():
        hook = getattr(part, "_hf_hook", None)
        for one in getattr(hook, "hooks", [hook]):
            device = getattr(one, "execution_device", None)
            if device is not None:
                return torch.device(device)
    return default
