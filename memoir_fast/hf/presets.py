"""Where a model's edited layer is, and how many columns an edit owns there."""

from typing import Any, NamedTuple

import torch
from torch import nn

from memoir_fast.config import MemoirConfig
from memoir_fast.errors import UnsupportedModelError
from memoir_fast.hf.adapters import beneath_adapters
from memoir_fast.modules.base_layer import executed_on
from memoir_fast.modules.memoir_linear import linear_shape


class Preset(NamedTuple):
    """Which layer of a model type is edited, where nobody names one."""

    path: str
    """The MLP's output projection of block {block}."""
    depth: float = 0.85
    """That block's share of all blocks."""
    shared: str | None = None
    """Where the block's MLP is a mixture of experts: the expert among them that every token passes."""
    known: str = "tested"
    """What the tests have shown on small random models; docs/support.md has it whole."""

    def paths(self, block: int) -> list[str]:
        """The names to look for, of block number `block`."""
        return [path.format(block=block) for path in (self.path, self.shared) if path is not None]


_MLP = "model.layers.{block}.mlp.down_proj"
_SHARED = "model.layers.{block}.mlp.shared_expert.down_proj"
_BESIDE_IMAGES = Preset(
    "model.language_model.layers.{block}.mlp.down_proj", known="tested, also with images in prompts"
)
_NOT_SHARED = "refused: none of its experts is shared; self_attn.o_proj works"
PRESETS = {
    "deepseek_v3": Preset(_MLP, shared="model.layers.{block}.mlp.shared_experts.down_proj"),
    "falcon_h1": Preset("model.layers.{block}.feed_forward.down_proj"),
    "gemma": Preset(_MLP),
    "gemma2": Preset(_MLP),
    "gemma3": _BESIDE_IMAGES,
    "gemma3_text": Preset(_MLP),
    "glm": Preset(_MLP),
    "glm4": Preset(_MLP),
    "gpt2": Preset("transformer.h.{block}.mlp.c_proj"),
    "gpt_neox": Preset("gpt_neox.layers.{block}.mlp.dense_4h_to_h"),
    "gptj": Preset("transformer.h.{block}.mlp.fc_out", depth=0.75),  # published: block 21 of 28
    "granite": Preset(_MLP),
    "llama": Preset(_MLP),
    "llava": _BESIDE_IMAGES,
    "mistral": Preset(_MLP),
    "mixtral": Preset(_MLP, known=_NOT_SHARED),
    "olmo2": Preset(_MLP),
    "phi": Preset("model.layers.{block}.mlp.fc2"),
    "phi3": Preset(_MLP),
    "qwen2": Preset(_MLP),
    "qwen2_moe": Preset(_MLP, shared=_SHARED),
    "qwen2_vl": _BESIDE_IMAGES,
    "qwen3": Preset(_MLP),
    "qwen3_moe": Preset(_MLP, known=_NOT_SHARED),
    "qwen3_next": Preset(_MLP, shared=_SHARED),
}

PUBLISHED_SHARE = 4096 / 14336
"""k / D, as published on LLaMA-3-8B."""


def complete(config: MemoirConfig, model: nn.Module) -> MemoirConfig:
    """Fills in what `config` leaves open for `model`.

    The layer is the MLP output projection at about 0.85 of the depth (27 of 32 blocks as published), k the published
    share of its inputs, 4096 / 14336, rounded to a multiple of 8 (GPT-J: 4096 of 16384, as published). tau is chosen by
    calibration.

    Raises:
        UnsupportedModelError: where no preset knows the model and `config.layer` is None, and where the layer belongs
            to one of several experts, which see only some of the tokens.
        ValueError: where the named layer does not exist, or k does not fit it.
    """
    layer = config.layer or _default_layer(plain_model(model))
    require_all_tokens(layer)
    width, _ = linear_shape(find_layer(model, layer))
    k = config.k or (4096 if width == 16384 else min(width, max(1, 8 * round(PUBLISHED_SHARE * width / 8))))
    if k > width:
        raise ValueError(f"k must lie in [1, D = {width}] for the layer {layer!r}, got {k}")
    return config.replace(layer=layer, k=k, tau="auto" if config.tau is None else config.tau)


def plain_model(model: Any) -> Any:
    """The model of transformers that a model of PEFT is wrapped around; any other as it is.

    UnsupportedModelError where `torch.compile` is wrapped around it.
    """
    if isinstance(getattr(model, "_orig_mod", None), nn.Module):
        raise UnsupportedModelError(
            f"a memory is put on a model, not on what torch.compile makes of it (a {type(model).__name__}): attach it "
            "to the model first, then compile that. It may be edited afterwards as often as you like"
        )
    inner = getattr(model, "get_base_model", None)
    return inner() if callable(inner) else model


def require_causal(model: Any) -> None:
    """UnsupportedModelError where a model of transformers says nothing token by token, or not behind its prompt."""
    plain = plain_model(model)
    kind = type(plain).__name__
    if getattr(getattr(plain, "config", None), "is_encoder_decoder", False):
        raise UnsupportedModelError(
            f"{kind} is an encoder and a decoder, of which the one reads a prompt and the other says the answer: a "
            "memory is put on a causal language model, which does both in one sequence"
        )
    if callable(getattr(plain, "can_generate", None)) and not plain.can_generate():
        raise UnsupportedModelError(
            f"{kind} has no generate: a memory is put on a causal language model, as AutoModelForCausalLM loads it"
        )


def find_layer(model: nn.Module, name: str) -> Any:
    """The submodule of that full name in the plain model, without adapters that PEFT has put around it.

    ValueError with names that exist where there is none.
    """
    model = plain_model(model)
    try:
        return beneath_adapters(model.get_submodule(name))
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
    preset = PRESETS[kind]
    blocks: int = settings.get_text_config(decoder=True).num_hidden_layers  # type: ignore[union-attr]
    block = min(blocks - 1, int(preset.depth * blocks))
    modules = dict(model.named_modules())
    found = next((path for path in preset.paths(block) if path in modules), None)
    if found is None and any("experts" in name.split(".") for name in modules):
        others = [preset.path.format(block=one) for one in reversed(range(blocks))]
        others.append(f"model.layers.{block}.self_attn.o_proj")
        named = next((f", e.g. MemoirConfig(layer={one!r})" for one in others if one in modules), "")
        raise _experts(f"the MLP of block {block} of this {kind} is a mixture of experts", f"another layer{named}")
    return found or preset.paths(block)[0]


def require_all_tokens(layer: str) -> None:
    """UnsupportedModelError where a layer of that name belongs to one of several experts."""
    if "experts" in layer.split("."):
        other = "the output projection of a dense MLP, of an expert that all tokens share, or of an attention"
        raise _experts(f"the layer {layer!r} belongs to a mixture of experts", other)


def _experts(what: str, instead: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{what}, each of which sees only the tokens that are sent to it, while the memory has to see all of them: "
        f"name {instead}"
    )


def device_of(model: nn.Module) -> torch.device:
    """Where the model takes its token ids; with weights that accelerate has offloaded, where it brings them to."""
    device = next(model.parameters()).device
    return executed_on(model, device) if device.type == "meta" else device
