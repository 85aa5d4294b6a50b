"""Prompts made of others: the rarest words, and what is left when they are exchanged."""

import pytest
import torch

from memoir_fast.core.wordings import (
    as_text,
    exchanged,
    pseudo_neighbours,
    questions,
    rarest_words,
    rewordings,
    words_of,
)

COMMON = "who wrote the novel when was established what is the name of in"


@pytest.fixture
def weights(tiny_tokenizer):
    """Tokens of common words weigh little."""
    found = torch.full((384,), 10.0)
    for word in COMMON.split():
        for text in (word, f" {word}", word.capitalize()):
            found[tiny_tokenizer(text).input_ids] = 1.0
    found[tiny_tokenizer("?").input_ids] = 0.0
    for number, text in enumerate(("Qx", " Zv")):
        found[tiny_tokenizer(text).input_ids] = 20.0 + number
    return found


@pytest.mark.parametrize(
    ("prompt", "rare"),
    [("Who wrote Qx?", "Qx?"), ("Qx Zv was established in", "Qx Zv"), ("the Zv", "Zv"), ("Qx", "Qx"), ("", "")],
)
def test_the_run_that_weighs_most(tiny_tokenizer, weights, prompt, rare):
    words, start, end = rarest_words(tiny_tokenizer, weights, prompt)
    assert words == prompt.split() and " ".join(words[start:end]) == rare


def test_exchanged_words_keep_what_ends_the_prompt(tiny_tokenizer, weights):
    assert exchanged(tiny_tokenizer, weights, "Who wrote Qx?", "Zv was established in") == "Who wrote Zv?"
    assert exchanged(tiny_tokenizer, weights, "Zv was established in", "Who wrote Qx?") == "Qx was established in"


def test_each_with_the_words_of_another(tiny_tokenizer, weights):
    prompts = ["Who wrote Qx?", "Zv was established in"]
    assert pseudo_neighbours(tiny_tokenizer, weights, prompts, 1) == ["Who wrote Zv?", "Qx was established in"]


def test_what_stands_around_the_words_stays(tiny_tokenizer, weights):
    assert exchanged(tiny_tokenizer, weights, '{"name": "Qx", "in":', "who wrote Zv?") == '{"name": "Zv", "in":'
    assert exchanged(tiny_tokenizer, weights, "who wrote Zv?", '{"name": "Qx", "in":') == "who wrote Qx?"


@pytest.mark.parametrize("text", ["青山公司的总部位于", "The capital of France is", "ชื่อ", ""])
def test_words_of_any_script_make_the_text_again(text):
    assert as_text(words_of(text)) == text


def test_scripts_without_spaces_have_copies_too():
    copies = rewordings("青山公司的总部位于", 3)
    assert len(copies) == 3 and all(set(copy) <= set("青山公司的总部位于") and " " not in copy for copy in copies)


def test_statements_are_asked_and_questions_are_not():
    found = questions("The capital of France is", 2)
    assert (
        len(found) == 2
        and all(text.endswith("?") for text in found)
        and found == questions("The capital of France is", 2)
    )
    for prompt in ("Who wrote the play?", '{"service": "x", "region":', "connect() raises", "<|user|>Hi", "one"):
        assert questions(prompt, 2) == []
