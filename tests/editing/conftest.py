"""Tiny random models of every architecture that has a preset."""

from types import SimpleNamespace

import pytest
import torch
import transformers

_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
_GEMMA = {**_SIZES, "head_dim": 8}
_GPT = {"n_embd": 32, "n_head": 4, "n_positions": 128}
_ARCHITECTURES = {
    "llama": _SIZES,
    "mistral": {**_SIZES, "sliding_window": None},
    "qwen2": _SIZES,
    "qwen3": {**_SIZES, "head_dim": 8},
    "gemma": _GEMMA,
    "gemma2": {**_GEMMA, "sliding_window": 128},
    "gemma3_text": {**_GEMMA, "sliding_window": 128},
    "phi": {**_SIZES, "num_key_value_heads": 4},
    "phi3": _SIZES,
    "gpt2": _GPT,  # Conv1D, absolute positions
    "gptj": {**_GPT, "rotary_dim": 4},
}
ARCHITECTURES = sorted(_ARCHITECTURES)


@pytest.fixture
def make_model():
    """A function (architecture, dtype, attention, blocks) -> a random model in eval mode, the same at every call.

    Its attention is SDPA by default, and eager where transformers has no other for the architecture.
    """

    def make(kind, dtype=torch.float32, attention=None, blocks=3):
        config = transformers.AutoConfig.for_model(
            kind,
            vocab_size=384,
            num_hidden_layers=blocks,
            initializer_range=0.2,
            tie_word_embeddings=False,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=1,
            **_ARCHITECTURES[kind],
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention)
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    parameter.data.normal_(std=0.1)
        return model.to(dtype).eval()

    return make


@pytest.fixture
def untouched():
    """A function model -> its hooks, patched forwards and flags, to be compared before and after."""

    def look(model):
        return [
            SimpleNamespace(
                name=name,
                hooks=(len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks)),
                own=sorted(key for key in module.__dict__ if key in ("forward", "generate", "__call__")),
                training=module.training,
                grads=[parameter.requires_grad for parameter in module.parameters(recurse=False)],
            )
            for name, module in model.named_modules()
        ]

    return look


@pytest.fixture(params=ARCHITECTURES)
def architecture(request):
    """Each architecture in turn."""
    return request.param


class PureRMSNorm(torch.nn.Module):
    """Llama's norm in its input's dtype: transformers computes it in float32, which hides agreement past 1e-8."""

    def __init__(self, norm):
        super().__init__()
        self.weight, self.eps = norm.weight, norm.variance_epsilon

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)


@pytest.fixture
def llama64(tiny_llama):
    """`tiny_llama` in float64 throughout."""
    model = tiny_llama.double()
    for name, module in list(model.named_modules()):
        if type(module).__name__ == "LlamaRMSNorm":
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, PureRMSNorm(module))
    return model
