"""Small random models of transformers' own classes: the architectures that docs/support.md speaks of.

Nothing is downloaded. A model has 4 blocks of 32 hidden units, its windows hold 6 tokens, and its logits differ from
token to token; the same name gives the same model each time.
"""

import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

ROOT = Path(__file__).resolve().parent.parent
BLOCKS, VOCABULARY, IMAGE, WINDOW = 4, 384, "<image>", 6

Sizes = Mapping[str, Any]


class Architecture(NamedTuple):
    """A row of the table."""

    kind: str
    """transformers' model type."""
    sizes: Sizes
    """What its config is given beyond what all are."""
    layer: str | None = None
    """The edited layer, where it is not the preset's."""
    images: bool = False
    """Prompts hold an image."""


_PLAIN: Sizes = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
_HEADS: Sizes = {**_PLAIN, "head_dim": 8}
_WINDOWS: Sizes = {**_HEADS, "sliding_window": WINDOW}
_GPT: Sizes = {"n_embd": 32, "n_head": 4, "n_positions": 256}
_EXPERTS: Sizes = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_SHARED: Sizes = {**_EXPERTS, "shared_expert_intermediate_size": 48}
_LINEAR: Sizes = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"] * (BLOCKS // 2),
}
_MAMBA: Sizes = {
    "mamba_d_ssm": 32,
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_expand": 1,
    "mamba_chunk_size": 16,
}
_LATENT: Sizes = {  # DeepSeek's attention, one dense block, and experts of which one is shared
    **_PLAIN,
    "num_key_value_heads": 4,
    "moe_intermediate_size": 48,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
_O_PROJ = "model.layers.3.self_attn.o_proj"

ARCHITECTURES = {
    "Llama": Architecture("llama", _PLAIN),
    "Mistral, sliding window": Architecture("mistral", {**_PLAIN, "sliding_window": WINDOW}),
    "Qwen2": Architecture("qwen2", _PLAIN),
    "Qwen3": Architecture("qwen3", _HEADS),
    "Gemma": Architecture("gemma", _HEADS),
    "Gemma 2": Architecture("gemma2", _WINDOWS),
    "Gemma 3, text": Architecture("gemma3_text", _WINDOWS),
    "Phi": Architecture("phi", {**_PLAIN, "num_key_value_heads": 4}),
    "Phi-3": Architecture("phi3", _PLAIN),
    "GPT-2": Architecture("gpt2", _GPT),
    "GPT-J": Architecture("gptj", {**_GPT, "rotary_dim": 4}),
    "GPT-NeoX": Architecture("gpt_neox", _PLAIN),
    "OPT": Architecture("opt", {**_PLAIN, "ffn_dim": 48, "word_embed_proj_dim": 32}, "model.decoder.layers.3.fc2"),
    "OLMo 2": Architecture("olmo2", _PLAIN),
    "GLM": Architecture("glm", _HEADS),
    "GLM-4": Architecture("glm4", _HEADS),
    "Granite": Architecture("granite", _PLAIN),
    "Qwen3-Next, linear attention": Architecture("qwen3_next", {**_HEADS, **_SHARED, **_LINEAR}),
    "Falcon-H1, Mamba beside attention": Architecture("falcon_h1", {**_HEADS, **_MAMBA}),
    "Mixtral": Architecture("mixtral", {**_HEADS, "num_local_experts": 4}),
    "Mixtral, attention": Architecture("mixtral", {**_HEADS, "num_local_experts": 4}, _O_PROJ),
    "Qwen2-MoE, shared expert": Architecture("qwen2_moe", {**_PLAIN, **_SHARED}),
    "Qwen2-MoE, dense block": Architecture("qwen2_moe", {**_PLAIN, **_SHARED, "mlp_only_layers": [2, 3]}),
    "Qwen2-MoE, routed experts": Architecture("qwen2_moe", {**_PLAIN, **_SHARED}, "model.layers.3.mlp.experts"),
    "Qwen3-MoE": Architecture("qwen3_moe", {**_HEADS, **_EXPERTS}),
    "DeepSeek-V3, shared expert": Architecture("deepseek_v3", _LATENT),
    "Llava": Architecture("llava", _PLAIN),
    "Llava, an image in the prompt": Architecture("llava", _PLAIN, images=True),
    "Qwen2-VL": Architecture("qwen2_vl", _PLAIN),
    "Qwen2-VL, an image in the prompt": Architecture("qwen2_vl", _PLAIN, images=True),
    "Gemma 3": Architecture("gemma3", _WINDOWS),
    "Gemma 3, an image in the prompt": Architecture("gemma3", _WINDOWS, images=True),
}

_VISION: Sizes = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
_QWEN_VISION: Sizes = {
    "depth": 2,
    "embed_dim": 16,
    "hidden_size": 32,
    "num_heads": 2,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
PATCHES = 4  # an image's tokens, in all of them


def tokenizer() -> Any:
    """The tests' tokenizer of 384 tokens, and one for images behind them."""
    made = runpy.run_path(str(ROOT / "tests" / "conftest.py"))["make_tiny_tokenizer"]()
    made.add_special_tokens({"additional_special_tokens": [IMAGE]})
    return made


def text_config(kind: str, sizes: Sizes, blocks: int = BLOCKS) -> Any:
    """The config of a language model."""
    sizes = {"vocab_size": VOCABULARY, "initializer_range": 0.2, "tie_word_embeddings": False, **sizes}
    ends = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
    return transformers.AutoConfig.for_model(kind, num_hidden_layers=blocks, **ends, **sizes)


def build(
    kind: str, sizes: Sizes, attention: str | None = None, blocks: int = BLOCKS, dtype: torch.dtype = torch.float32
) -> Any:
    """A model in eval mode, the same at every call.

    Args:
        kind, sizes: see `Architecture`.
        attention (str, optional): how attention is computed. Default: SDPA, or eager where there is no other.
        blocks (int): how many it has.
        dtype: of its weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind in _TOWERS:
            model = transformers.AutoModelForImageTextToText.from_config(_TOWERS[kind](sizes))
        else:
            config = text_config(kind, sizes, blocks)
            model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.data.normal_(std=0.1)
            elif kind in _TOWERS and "norm" not in name and parameter.dim() > 1:
                parameter.data.normal_(std=0.2)
    return model.to(dtype).eval()


def inputs(kind: str, made: Any, prompts: list[str]) -> dict[str, torch.Tensor]:
    """What a model is called with: prompts, padded on the left, and the images in them, all of them the same."""
    texts = [prompt.replace(IMAGE, IMAGE * PATCHES) for prompt in prompts]
    encoded = made(texts, return_tensors="pt", padding=True)
    given = {name: encoded[name] for name in ("input_ids", "attention_mask")}
    images = sum(prompt.count(IMAGE) for prompt in prompts)
    if kind == "gemma3":
        given["token_type_ids"] = (given["input_ids"] == VOCABULARY).int()
    if not images:
        return given
    drawn = torch.Generator().manual_seed(0)
    if kind == "qwen2_vl":
        grid = torch.tensor([[1, 4, 4]]).expand(images, -1)
        pixels = torch.randn(16, 96, generator=drawn).repeat(images, 1)
        return {
            **given,
            "pixel_values": pixels,
            "image_grid_thw": grid,
            "mm_token_type_ids": (given["input_ids"] == VOCABULARY).int(),
        }
    return {**given, "pixel_values": torch.randn(1, 3, 8, 8, generator=drawn).repeat(images, 1, 1, 1)}


def _llava(sizes: Sizes) -> Any:
    return transformers.LlavaConfig(
        vision_config={"model_type": "clip_vision_model", "projection_dim": 16, **_VISION},
        text_config=text_config("llama", _seeing(sizes)),
        image_token_index=VOCABULARY,
    )


def _qwen2_vl(sizes: Sizes) -> Any:
    rope = {"rope_type": "default", "type": "mrope", "mrope_section": [1, 1, 2]}
    text = text_config("qwen2_vl_text", {**_seeing(sizes), "rope_scaling": rope})
    return transformers.Qwen2VLConfig(
        vision_config=dict(_QWEN_VISION), text_config=text.to_dict(), image_token_id=VOCABULARY, video_token_id=385
    )


def _gemma3(sizes: Sizes) -> Any:
    return transformers.Gemma3Config(
        vision_config={"model_type": "siglip_vision_model", **_VISION},
        text_config=text_config("gemma3_text", _seeing(sizes)),
        mm_tokens_per_image=PATCHES,
        image_token_index=VOCABULARY,
        boi_token_index=386,
        eoi_token_index=387,
    )


def _seeing(sizes: Sizes) -> Sizes:
    return {**sizes, "vocab_size": VOCABULARY + 8}


_TOWERS = {"gemma3": _gemma3, "llava": _llava, "qwen2_vl": _qwen2_vl}
