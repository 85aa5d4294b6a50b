"""A small random model in a folder, for what takes a model by name."""

import pytest
import torch

CHAT = (
    "{% for turn in messages %}<|{{ turn.role }}|>{{ turn.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture
def model_folder(tmp_path, tiny_tokenizer):
    """A folder that transformers loads: a random Llama, wider than `tiny_llama` so that it holds several edits (D =
    1024), and the tiny tokenizer with a chat template."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=384,
        hidden_size=128,
        intermediate_size=1024,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.13,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    folder = tmp_path / "tiny"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer.chat_template = CHAT
    tiny_tokenizer.save_pretrained(folder)
    return str(folder)
