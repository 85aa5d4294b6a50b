"""Which of transformers' models can be followed: experts, windows, linear attention, caches of their own."""

from types import SimpleNamespace

import pytest
import torch
import transformers

from memoir_fast import Memoir, MemoirConfig
from memoir_fast.errors import UnsupportedModelError

_SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
_EXPERTS = {**_SIZES, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
_KINDS = ["linear_attention", "full_attention", "linear_attention"]
_FOLLOWED = {
    "bloom": ({"hidden_size": 32, "n_head": 4}, "transformer.h.1.mlp.dense_4h_to_h"),
    "gemma2": ({**_SIZES, "head_dim": 8, "sliding_window": 3}, "model.layers.1.mlp.down_proj"),
    "gpt_neox": (_SIZES, "gpt_neox.layers.1.mlp.dense_4h_to_h"),
    "gpt_oss": (
        {**_SIZES, "head_dim": 8, "num_local_experts": 4, "sliding_window": 3},
        "model.layers.1.self_attn.o_proj",
    ),
    "lfm2": ({**_SIZES, "layer_types": ["conv", "full_attention", "conv"]}, "model.layers.1.feed_forward.w2"),
    "mixtral": ({**_SIZES, "num_local_experts": 4}, "model.layers.1.self_attn.o_proj"),
    "openai-gpt": ({"n_embd": 32, "n_head": 4}, "transformer.h.1.mlp.c_proj"),  # without a cache
    "qwen3_next": (
        {**_EXPERTS, **_LINEAR, "shared_expert_intermediate_size": 16, "layer_types": _KINDS},
        "model.layers.1.self_attn.o_proj",
    ),
}
_REFUSED = {
    "opt": (
        {"hidden_size": 32, "ffn_dim": 48, "num_attention_heads": 4, "word_embed_proj_dim": 32},
        "model.decoder.layers.1.fc2",
        r"the edited layer's input must be \[B, S, D\] = \[2, 5, D\], got \[10, 48\]",
    ),
    "rwkv": (
        {"hidden_size": 32, "attention_hidden_size": 32, "intermediate_size": 48, "context_length": 64},
        "rwkv.blocks.1.feed_forward.value",
        "no cache was found in its output, with use_cache=True",
    ),
}


def _memoir(kind, settings, layer):
    config = transformers.AutoConfig.for_model(
        kind, vocab_size=384, num_hidden_layers=3, pad_token_id=0, bos_token_id=None, eos_token_id=1, **settings
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    bytes_alone = lambda text, **_: SimpleNamespace(input_ids=[2 + one for one in text[:12].encode()])  # noqa: E731
    return Memoir(model, bytes_alone, MemoirConfig(routing="paper", layer=layer, k=16))


@pytest.mark.parametrize("kind", _FOLLOWED)
def test_followed(kind):
    assert _memoir(kind, *_FOLLOWED[kind]).last_routes == []


@pytest.mark.parametrize("kind", _REFUSED)
def test_refused(kind):
    settings, layer, shown = _REFUSED[kind]
    with pytest.raises(UnsupportedModelError, match=shown):
        _memoir(kind, settings, layer)
