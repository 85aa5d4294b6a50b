"""Whether the values of a memory's files can be a memory's at all."""

import dataclasses
from typing import Any

import torch

from memoir_fast.core.calibration import Calibration
from memoir_fast.io.mapped import pieces
from memoir_fast.mask_format import BITS, pack
from memoir_fast.modules.search import shared_bits

_MOST = 1 << 24  # edits, and pages, that room is made for at once
_FINGERPRINT = {"model_type", "hidden_size", "num_hidden_layers", "layer", "weight_shape", "weight_hashed_as"}


def require_settings(values: dict[str, Any]) -> None:
    """ValueError where a setting has no type that a memory has, or asks for more room than any needs."""
    config, base = values["config"], values["fingerprint"]
    missing = _FINGERPRINT - set(base)
    if missing:
        raise ValueError(f"fingerprint lacks {', '.join(sorted(missing))}")
    if not isinstance(config.get("layer"), str) or config["layer"] != base["layer"]:
        raise ValueError(f"layer must be that of the fingerprint, {base['layer']!r}, got {config.get('layer')!r}")
    further, others = config.get("further", []), base.get("further", [])
    if not isinstance(others, list) or further != [one["layer"] for one in others]:
        raise ValueError(f"further must be the layers of the fingerprint, {others!r}, got {further!r}")
    if not isinstance(config.get("seed", 0), int):
        raise ValueError(f"seed must be a whole number, got {config['seed']!r}")
    for name in ("max_edits", "max_pages"):
        if (config.get(name) or 0) > _MOST:
            raise ValueError(f"{name} must be at most {_MOST:,}, got {config[name]}")


def require_numbers(tensors: dict[str, torch.Tensor]) -> None:
    """ValueError where a tensor has other sides than two, is no float where it must be, or is not finite."""
    sides = {"mu": 1, "memory_values": 2, "code_weights": 1, "code_mean": 1, "code_projection": 2}
    for name, count in sides.items():
        tensor = tensors.get(name)
        if tensor is None:
            continue
        if tensor.dim() != count or not tensor.is_floating_point() or name != "memory_values" and not tensor.numel():
            raise ValueError(f"{name} must be floats of {count} sides, got {tensor.dtype} {list(tensor.shape)}")
        if not _finite(tensor) or name == "code_weights" and bool((tensor < 0).any()):
            raise ValueError(f"{name} must be finite, and weights at least 0")
    for name, least in (("target_tokens", 0), ("min_overlap", 1)):
        if name in tensors and len(tensors[name]) and int(tensors[name].min()) < least:
            raise ValueError(f"{name} must be at least {least}")


def _finite(values: torch.Tensor) -> bool:
    """Whether all of a tensor are numbers; without a copy of it, or of what is looked at."""
    return all(bool(torch.stack(torch.aminmax(piece)).isfinite().all()) for piece in pieces(values) if piece.numel())


def layers_in(tensors: dict[str, torch.Tensor], fingerprint: dict[str, Any]) -> tuple[int, int]:
    """(D, O), O of all layers together: what the tensors say.

    ValueError where the weights have other sides; in which order is not said, since Conv1D keeps them transposed.
    """
    width, outputs = len(tensors["mu"]), tensors["memory_values"].shape[1]
    others = fingerprint.get("further", ())
    if any(one["weight_hashed_as"] != "bfloat16" for one in (fingerprint, *others)):  # packed in ways of its own
        return width, outputs
    own = outputs
    for one in others:
        if len(one["weight_shape"]) != 2 or width not in one["weight_shape"]:
            raise ValueError(f"the weight of {one['layer']} must have the side {width}, got {one['weight_shape']}")
        own -= sum(one["weight_shape"]) - width
    shape = list(fingerprint["weight_shape"])
    if sorted(shape) != sorted((width, own)):
        raise ValueError(f"the layer's weight must have the sides {width} and {own}, got {shape}")
    return width, outputs


def require_bits(masks: torch.Tensor, width: int, k: int, name: str = "mask") -> None:
    """ValueError where a mask int32 [N, W] has other than k bits of `width`; that of a deleted edit has none."""
    every, own = (pack(torch.ones((1, bits), dtype=torch.bool)) for bits in (BITS * masks.shape[1], width))
    counts = set(shared_bits(every, masks).unique().tolist())
    if name == "mask":
        counts -= {0}
    if counts - {k} or not torch.equal(shared_bits(every, masks), shared_bits(own, masks)):
        raise ValueError(f"every {name} must have k = {k} of {width} bits set, got {sorted(counts)}")


def threshold_in(value: Any) -> float:
    """A threshold, as the settings have it; ValueError where it is none."""
    if not isinstance(value, float) or not 0 < value <= 1:
        raise ValueError(f"tau must lie in (0, 1], got {value!r}")
    return value


def calibration_in(values: Any) -> Calibration | None:
    """How it was chosen, or None; KeyError where something of that is missing, ValueError where it is no number."""
    if values is None:
        return None
    found = {field.name: values[field.name] for field in dataclasses.fields(Calibration)}
    if not all(one is None or isinstance(one, (int, float)) for one in found.values()):
        raise ValueError("calibration must hold numbers")
    return Calibration(**found)


def texts_in(value: Any) -> list[str]:
    """The prefixes; ValueError where they are no texts."""
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"prefixes must be a list of texts, got {value!r}")
    return value
