"""Models of random weights, and a tokenizer, made of no file: known sizes where the weights are not at hand."""

import copy
from typing import Any

import torch


def llama(
    *, hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, vocabulary: int, **more: Any
) -> Any:
    """A Llama of these sizes with random weights of torch's default dtype, frozen."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        **more,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def llama_8b() -> tuple[Any, Any]:
    """LLaMA-3-8B's shape in bfloat16 on the GPU, and a tokenizer."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            model = llama(
                hidden=4096,
                intermediate=14336,
                layers=32,
                heads=32,
                kv_heads=8,
                vocabulary=128256,
                max_position_embeddings=8192,
                rope_theta=500000.0,
            )
    finally:
        torch.set_default_dtype(before)
    return model, bare_tokenizer()


def sharing(model: Any) -> Any:
    """A copy of a model over the same weights: a memory attached to one is not in the other."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


def bare_tokenizer() -> Any:
    """A tokenizer of single bytes, made of no file."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Tokenizer(models.BPE({"<pad>": 0, "</s>": 1} | {one: 2 + i for i, one in enumerate(alphabet)}, []))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>")
