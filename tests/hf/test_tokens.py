"""`Edit` and the token rows that it is learned from."""

from types import SimpleNamespace

import pytest
import torch

from memoir_fast import Edit
from memoir_fast.hf.tokens import Row, context_length, pad, padding_id, prompt_ids, row, token_texts


@pytest.mark.parametrize("name", ["prompt", "target"])
@pytest.mark.parametrize("text", ["", "  ", "\n\t"])
def test_empty_texts_are_refused_by_name(name, text):
    with pytest.raises(ValueError, match=f"an edit's {name} must not be empty, got "):
        Edit(**{"prompt": "a", "target": "b", name: text})


@pytest.mark.parametrize(("name", "value", "kind"), [("prompt", None, "NoneType"), ("target", 3, "int")])
def test_other_types_are_refused_by_name(name, value, kind):
    with pytest.raises(TypeError, match=f"an edit's {name} must be a string, got {kind}"):
        Edit(**{"prompt": "a", "target": "b", name: value})


def test_a_row_is_the_prompt_and_then_the_target(tiny_tokenizer):
    found = row(tiny_tokenizer, "The capital of France is", "Lyon")
    assert tiny_tokenizer.decode(found.ids) == "The capital of France is Lyon"
    assert tiny_tokenizer.decode(found.ids[: found.prompt]) == "The capital of France is"
    assert found.ids[: found.prompt] == prompt_ids(tiny_tokenizer, "The capital of France is")


def test_a_row_longer_than_the_context_is_refused(tiny_tokenizer):
    found = row(tiny_tokenizer, "The capital of France is", "Lyon")
    assert row(tiny_tokenizer, "The capital of France is", "Lyon", len(found.ids)) == found
    with pytest.raises(ValueError, match=rf"have {len(found.ids)} tokens, the model's context holds 3: 'The capital"):
        row(tiny_tokenizer, "The capital of France is", "Lyon", 3)


def _words(vocabulary, eos=None, closes=False):
    """A tokenizer of whole words that leaves out those it does not know."""

    def tokenize(text):
        ids = [vocabulary[word] for word in text.split() if word in vocabulary]
        return SimpleNamespace(input_ids=[*ids, eos] if closes else ids)

    tokenize.eos_token_id = eos
    return tokenize


def test_texts_that_tokenise_to_nothing_are_refused():
    tokenizer = _words({"one": 5, "two": 6})
    with pytest.raises(ValueError, match="the prompt 'three' has no tokens"):
        row(tokenizer, "three", "two")
    with pytest.raises(ValueError, match="the target 'three' has no tokens after the prompt 'one'"):
        row(tokenizer, "one", "three")


def test_a_tokenizer_that_closes_every_text():
    tokenizer = _words({"one": 5, "two": 6}, eos=9, closes=True)
    assert row(tokenizer, "one", "two two") == Row([5, 6, 6], 1)
    with pytest.raises(ValueError, match="the target 'three' has no tokens"):
        row(tokenizer, "one", "three")


def test_rows_are_padded_on_the_right():
    ids, mask, labels = pad([Row([5, 6, 7], 2), Row([8, 9], 1)], 0, torch.device("cpu"))
    assert ids.tolist() == [[5, 6, 7], [8, 9, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert labels.tolist() == [[-100, -100, 7], [-100, 9, -100]]
    assert {tensor.dtype for tensor in (ids, mask, labels)} == {torch.int64}


def test_padding_id_and_context_length(tiny_llama, tiny_tokenizer):
    assert padding_id(tiny_tokenizer) == 0
    assert padding_id(SimpleNamespace(pad_token_id=None, eos_token_id=4)) == 4
    assert padding_id(SimpleNamespace()) == 0
    assert context_length(tiny_llama) == 256
    assert context_length(SimpleNamespace(config=SimpleNamespace())) is None


def test_each_token_reads_as_the_tokenizer_says(tiny_tokenizer, monkeypatch):
    """Decoded at once by the library below it, and one by one where the tokenizer has a word of its own in it."""
    usual = tiny_tokenizer.batch_decode([[one] for one in range(len(tiny_tokenizer))])
    monkeypatch.setattr(tiny_tokenizer, "clean_up_tokenization_spaces", False)
    assert token_texts(tiny_tokenizer, 300) == usual[:300] and token_texts(tiny_tokenizer, 10**9) == usual
    monkeypatch.setattr(type(tiny_tokenizer), "batch_decode", lambda _, ids: [f"<{one[0]}>" for one in ids])
    assert token_texts(tiny_tokenizer, 3) == ["<0>", "<1>", "<2>"]
    monkeypatch.undo()
    assert token_texts(tiny_tokenizer, 300) == usual[:300]


def test_tokens_are_decoded_at_once_only_where_nothing_is_cleaned_up(tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(tiny_tokenizer, "clean_up_tokenization_spaces", False)
    monkeypatch.setattr(type(tiny_tokenizer), "batch_decode", lambda _, ids: ["" for one in ids])
    assert token_texts(tiny_tokenizer, 9) == [""] * 9
    monkeypatch.setattr(tiny_tokenizer, "clean_up_tokenization_spaces", True)
    assert token_texts(tiny_tokenizer, 2) == [""] * 2
