"""Where a model's edited layer is, and how many columns an edit owns there."""

from typing import Any, NamedTuple

import torch
from torch import nn

from memoir_fast.config import MemoirConfig
from memoir_fast.errors import UnsupportedModelError
from memoir_fast.modules.memoir_linear import linear_shape


class Preset(NamedTuple):
    """`path` names the MLP's output projection of block {block}; `depth` is that block's share of all blocks."""

    path: str
    depth: float = 0.85


_LLAMA_LIKE = "model.layers.{block}.mlp.down_proj"
PRESETS = {
    "llama": Preset(_LLAMA_LIKE),
    "mistral": Preset(_LLAMA_LIKE),
    "qwen2": Preset(_LLAMA_LIKE),
    "qwen3": Preset(_LLAMA_LIKE),
    "gemma": Preset(_LLAMA_LIKE),
    "gemma2": Preset(_LLAMA_LIKE),
    "gemma3_text": Preset(_LLAMA_LIKE),
    "phi3": Preset(_LLAMA_LIKE),
    "phi": Preset("model.layers.{block}.mlp.fc2"),
    "gptj": Preset("transformer.h.{block}.mlp.fc_out", depth=0.75),  # published: block 21 of 28
    "gpt2": Preset("transformer.h.{block}.mlp.c_proj"),
}

_PUBLISHED_SHARE = 4096 / 14336  # k / D on LLaMA-3-8B


def complete(config: MemoirConfig, model: nn.Module) -> MemoirConfig:
    """Fills in what `config` leaves open for `model`.

    The layer is the MLP output projection at about 0.85 of the depth (27 of 32 blocks as published), k the published
    share of its inputs, 4096 / 14336, rounded to a multiple of 8 (GPT-J: 4096 of 16384, as published). tau is chosen by
    calibration.

    Raises:
        UnsupportedModelError: where no preset knows the model and `config.layer` is None.
        ValueError: where the named layer does not exist, or k does not fit it.
    """
    layer = config.layer or _default_layer(model)
    width, _ = linear_shape(find_layer(model, layer))
    k = config.k or (4096 if width == 16384 else min(width, max(1, 8 * round(_PUBLISHED_SHARE * width / 8))))
    if k > width:
        raise ValueError(f"k must lie in [1, D = {width}] for the layer {layer!r}, got {k}")
    return config.replace(layer=layer, k=k, tau="auto" if config.tau is None else config.tau)


def find_layer(model: nn.Module, name: str) -> Any:
    """The submodule of that full name; ValueError with names that exist where there is none."""
    try:
        return model.get_submodule(name)
    except AttributeError:
        linear = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)][-8:]
        raise ValueError(f"the model has no layer {name!r}; its last linear layers are {', '.join(linear)}") from None


def _default_layer(model: nn.Module) -> str:
    settings = getattr(model, "config", None)
    kind = getattr(settings, "model_type", type(model).__name__)
    if kind not in PRESETS:
        raise UnsupportedModelError(
            f"no preset for model type {kind!r} (known: {', '.join(sorted(PRESETS))}); name the MLP's output "
            "projection of a block at about 0.85 of the depth, e.g. MemoirConfig(layer='model.layers.27.mlp.down_proj')"
        )
    blocks: int = settings.num_hidden_layers  # type: ignore[union-attr]
    return PRESETS[kind].path.format(block=min(blocks - 1, int(PRESETS[kind].depth * blocks)))


def device_of(model: nn.Module) -> torch.device:
    """Where the model takes its token ids."""
    return next(model.parameters()).device
