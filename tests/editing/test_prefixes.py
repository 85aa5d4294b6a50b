"""The prefixes that a model writes itself."""

import pytest
import torch

from memoir_fast.editing.prefixes import with_prefix, write_prefixes


@pytest.mark.parametrize(
    ("prefix", "text"),
    [("", "Who?"), ("It rains", "It rains. Who?"), ("It rains.", "It rains. Who?"), ("Oh!", "Oh! Who?")],
)
def test_a_prefix_is_a_sentence_of_its_own(prefix, text):
    assert with_prefix(prefix, "Who?") == text


def test_the_same_model_writes_the_same_texts_and_draws_no_number(tiny_llama, tiny_tokenizer):
    before = torch.random.get_rng_state()
    texts = write_prefixes(tiny_llama, tiny_tokenizer, 14, 3)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert texts == write_prefixes(tiny_llama, tiny_tokenizer, 14, 3)
    assert texts[:5] == write_prefixes(tiny_llama, tiny_tokenizer, 5, 3)
    assert len(set(texts)) == 14 and write_prefixes(tiny_llama, tiny_tokenizer, 0, 3) == []
    for text in texts:
        assert text == " ".join(text.split()) and "</s>" not in text
    opening = "The weather today is"
    assert texts[0].startswith(opening) and len(texts[0]) >= len(opening)
    assert texts[12].startswith(opening)


def test_sampling_settings_of_the_model_change_nothing(tiny_llama, tiny_tokenizer):
    texts = write_prefixes(tiny_llama, tiny_tokenizer, 2, 4)
    tiny_llama.generation_config.update(do_sample=True, temperature=5.0, num_beams=4, max_length=3)
    assert write_prefixes(tiny_llama, tiny_tokenizer, 2, 4) == texts
    assert tiny_llama.generation_config.do_sample


def test_a_tokenizer_without_a_padding_token(tiny_llama, tiny_tokenizer):
    texts = write_prefixes(tiny_llama, tiny_tokenizer, 1, 4)
    tiny_tokenizer.pad_token = None
    assert write_prefixes(tiny_llama, tiny_tokenizer, 1, 4) == texts
