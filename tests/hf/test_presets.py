"""Presets: which layer and how many columns, for models of every known type, none of them with real weights."""

import pytest
import torch
import transformers
from torch import nn

from memoir_fast import Memoir, MemoirConfig
from memoir_fast.errors import UnsupportedModelError
from memoir_fast.hf.presets import PRESETS, complete, device_of, find_layer
from memoir_fast.modules.memoir_linear import linear_shape


def _on_meta(kind, blocks, **sizes):
    settings = transformers.AutoConfig.for_model(kind, vocab_size=64, pad_token_id=0, num_hidden_layers=blocks, **sizes)
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(settings)


_SMALL = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 224, "num_key_value_heads": 2}
_ROUND = {"n_embd": 56, "n_head": 2}  # GPT-2 and GPT-J: four times that inside of the MLP
_SIZES = {"gpt2": _ROUND, "gptj": {**_ROUND, "rotary_dim": 4}, "phi": {**_SMALL, "num_key_value_heads": 4}}
_SHARED = {**_SMALL, "shared_expert_intermediate_size": 224}
_SIZES |= {"qwen2_moe": _SHARED, "qwen3_next": _SHARED, "deepseek_v3": {**_SMALL, "moe_intermediate_size": 224}}
_HEADS = ("gemma", "gemma2", "gemma3_text", "glm", "glm4", "qwen3", "qwen3_next")
_IMAGES = ("gemma3", "llava", "qwen2_vl")  # the page of supported models has the layers of these
_NONE_SHARED = ("mixtral", "qwen3_moe")


@pytest.mark.parametrize("kind", sorted(set(PRESETS) - {*_IMAGES, *_NONE_SHARED}))
def test_every_preset_names_the_mlps_output_projection(kind):
    sizes = dict(_SIZES.get(kind, _SMALL))
    if kind in _HEADS:
        sizes["head_dim"] = 16
    model = _on_meta(kind, 8, **sizes)
    config = complete(MemoirConfig(), model)
    width, outputs = linear_shape(find_layer(model, config.layer))
    assert (width, outputs) == ((224, 56) if kind in ("gpt2", "gptj") else (224, 64))
    assert config.k == 64 and config.tau == "auto"
    assert f".{6}." in config.layer


@pytest.mark.parametrize("kind", _NONE_SHARED)
def test_experts_are_no_layer_by_default(kind):
    model = _on_meta(kind, 8, **_SMALL, moe_intermediate_size=16, num_experts=4, num_local_experts=4)
    other = "model.layers.6.self_attn.o_proj"
    with pytest.raises(UnsupportedModelError, match=f"MLP of block 6 of this {kind} is a mixture of .*layer='{other}'"):
        complete(MemoirConfig(), model)
    assert complete(MemoirConfig(layer=other), model).layer == other
    with pytest.raises(
        UnsupportedModelError, match="'model.layers.6.mlp.experts' belongs to a mixture of experts, each"
    ):
        complete(MemoirConfig(layer="model.layers.6.mlp.experts"), model)


def test_a_dense_block_among_experts_is_named_or_taken():
    sizes = {**_SMALL, "moe_intermediate_size": 16, "num_experts": 4}
    model = _on_meta("qwen3_moe", 8, **sizes, mlp_only_layers=[0, 3])
    with pytest.raises(UnsupportedModelError, match="layer='model.layers.3.mlp.down_proj'"):
        complete(MemoirConfig(), model)
    assert complete(MemoirConfig(), _on_meta("qwen3_moe", 8, **sizes, mlp_only_layers=[6])).k == 64


@pytest.mark.parametrize(("kind", "blocks", "block"), [("llama", 32, 27), ("llama", 30, 25), ("llama", 1, 0)])
def test_the_published_layer(kind, blocks, block):
    assert complete(MemoirConfig(), _on_meta(kind, blocks, **_SMALL)).layer == f"model.layers.{block}.mlp.down_proj"


def test_the_published_layer_of_gpt_j():
    assert complete(MemoirConfig(), _on_meta("gptj", 28, **_SIZES["gptj"])).layer == "transformer.h.21.mlp.fc_out"


@pytest.mark.parametrize(("width", "k"), [(14336, 4096), (16384, 4096), (11008, 3144), (1536, 440), (48, 16), (3, 1)])
def test_k_is_the_published_share_of_the_inputs(width, k):
    model = _on_meta("llama", 2, **{**_SMALL, "intermediate_size": width})
    assert complete(MemoirConfig(), model).k == k


def test_what_the_user_gives_is_kept():
    model = _on_meta("llama", 4, **_SMALL)
    given = MemoirConfig(layer="model.layers.0.self_attn.o_proj", k=64, tau=0.3, seed=5, max_edits=3)
    assert complete(given, model) == given
    assert complete(MemoirConfig(tau="auto"), model).tau == "auto"


def test_an_unknown_architecture_says_how_to_name_a_layer():
    model = nn.ModuleDict({"mlp": nn.Linear(8, 4)})
    with pytest.raises(UnsupportedModelError, match=r"no preset for model type 'ModuleDict' .*MemoirConfig\(layer="):
        complete(MemoirConfig(), model)
    assert complete(MemoirConfig(layer="mlp", k=2), model).k == 2


@pytest.mark.parametrize(
    ("config", "error", "text"),
    [
        (MemoirConfig(k=225), ValueError, r"k must lie in \[1, D = 224\] for the layer 'model.layers.3.*, got 225"),
        (MemoirConfig(layer="model.layers.9.mlp"), ValueError, "no layer 'model.layers.9.mlp'; .*, lm_head"),
        (MemoirConfig(layer="model.norm"), TypeError, "must be a linear layer .* got LlamaRMSNorm"),
        (MemoirConfig(layer="model.norm.weight"), ValueError, "no layer 'model.norm.weight'"),
    ],
)
def test_settings_that_do_not_fit_the_model(config, error, text):
    with pytest.raises(error, match=text):
        complete(config, _on_meta("llama", 4, **_SMALL))


def test_only_causal_language_models_have_a_memory(tiny_llama, tiny_tokenizer, untouched):
    small = {"vocab_size": 384, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    both = transformers.T5ForConditionalGeneration(transformers.T5Config(**small))
    heads = transformers.LlamaForSequenceClassification(tiny_llama.config)
    for model, text in (
        (both, "is an encoder and a decoder"),
        (heads, "no generate"),
        (tiny_llama.model, "no generate"),
    ):
        before = untouched(model)
        with pytest.raises(UnsupportedModelError, match=rf"^{type(model).__name__} .*{text}"):
            Memoir.attach(model, tiny_tokenizer, MemoirConfig())
        assert untouched(model) == before


def test_device_of():
    assert device_of(nn.Linear(2, 2)).type == "cpu"
    assert device_of(nn.Linear(2, 2, device="meta")).type == "meta"
