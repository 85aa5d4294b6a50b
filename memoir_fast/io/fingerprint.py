"""What tells one base model from another."""

import copy
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from memoir_fast.distributed.row_parallel import whole
from memoir_fast.errors import WrongModelError
from memoir_fast.hf.presets import find_layer
from memoir_fast.modules.base_layer import weight_of
from memoir_fast.modules.further_linear import FurtherLinear
from memoir_fast.modules.memoir_linear import MemoirLinear

_OTHER_NUMBERS = (
    ". Its weights are other numbers. If one is the same model in float16, where small weights are rounded: load it in "
    "the dtype that it had when the memory was made; of float32 and bfloat16 either will do"
)


def fingerprint(model: Any, layer: str, further: Sequence[str] = ()) -> dict[str, Any]:
    """What tells one base model from another, in plain values.

    The layer's weight is hashed after rounding to bfloat16, so that one model in float32 and in bfloat16 agree;
    float16 has other numbers, where weights are small, and disagrees. A weight that is not floating (quantised) is
    hashed as it is. So are those of `further` layers, where there are any.
    """
    settings = getattr(model, "config", None)
    hashed = _hashed(model, layer)
    others = [_hashed(model, name) for name in further]
    return {
        "model_type": getattr(settings, "model_type", type(model).__name__),
        "hidden_size": getattr(settings, "hidden_size", None),
        "num_hidden_layers": getattr(settings, "num_hidden_layers", None),
        "vocab_size": getattr(settings, "vocab_size", None),
        "layer": layer,
        **hashed,
        **({"further": [{"layer": name, **own} for name, own in zip(further, others, strict=True)]} if further else {}),
    }


def _hashed(model: Any, layer: str) -> dict[str, Any]:
    """What tells the weight of one layer from another."""
    found = find_layer(model, layer)
    with _brought(found.base if isinstance(found, (MemoirLinear, FurtherLinear)) else found) as own:
        weight = whole(weight_of(own).detach())
        if type(weight) is not torch.Tensor and weight.is_floating_point():
            weight = weight.dequantize()  # a tensor of torchao's, which passes for one of floats
        if getattr(weight_of(own), "quant_state", None) is not None:
            # bitsandbytes packs anew at the first pass, for the CPU
            weight = copy.deepcopy(own).state_dict()["weight"]  # of a copy, since asking for it unpacks the layer
        rounded = weight.dtype.is_floating_point
        if rounded:
            weight = weight.to(torch.bfloat16)
        weight = weight.cpu()
    raw = weight.contiguous().reshape(-1).view(torch.uint8)
    return {
        "weight_shape": list(weight.shape),
        "weight_hashed_as": "bfloat16" if rounded else "raw",
        "weight_sha256": hashlib.sha256(raw.numpy().data).hexdigest(),
    }


@contextmanager
def _brought(layer: nn.Module) -> Iterator[nn.Module]:
    """A layer with its weights, also where accelerate keeps them elsewhere until they are needed."""
    if weight_of(layer).device.type != "meta":
        yield layer
        return
    from accelerate.utils import align_module_device

    with align_module_device(layer):
        yield layer


def require_same_model(folder: Path, expected: dict[str, Any], model: nn.Module) -> None:
    """WrongModelError where the memory in `folder`, made for a model of that fingerprint, belongs to another one."""
    layer = str(expected.get("layer"))
    try:
        own = fingerprint(model, layer, [str(one["layer"]) for one in expected.get("further", ())])
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise WrongModelError(f"{folder} belongs to another base model: {error}") from error
    pairs = [("", expected, own)]
    for there, here in zip(expected.get("further", ()), own.get("further", ()), strict=True):
        pairs.append((f"{here['layer']}: ", there, here))
    differing = [
        f"{where}{name}: expected {_short(there.get(name))}, got {_short(value)}"
        for where, there, here in pairs
        for name, value in here.items()
        if name != "further" and there.get(name) != value
    ]
    if differing:
        if all("weight_sha256: " in one for one in differing):
            differing[-1] += _OTHER_NUMBERS
        raise WrongModelError(f"{folder} belongs to another base model: {'; '.join(differing)}")


def _short(value: Any) -> str:
    return f"{value[:12]}..." if isinstance(value, str) and len(value) == 64 else repr(value)
