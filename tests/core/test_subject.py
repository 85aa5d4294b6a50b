"""A subject as tokens, and which tokens are one word."""

import pytest
import torch

from memoir_fast import Edit
from memoir_fast.core.edit import subject_in
from memoir_fast.core.subject import alike_tokens, names_of, spellings
from memoir_fast.hf.tokens import token_texts
from memoir_fast.modules.naming import SPELLINGS, TOKENS, named, present
from memoir_fast.modules.routing_code import RoutingCode


@pytest.fixture
def code(tiny_tokenizer):
    size = len(tiny_tokenizer)
    weights = torch.ones(size)
    weights[[one for one, text in enumerate(token_texts(tiny_tokenizer, size)) if not text.strip()]] = 0
    found = RoutingCode(weights, torch.zeros(size).byte(), torch.zeros(4), torch.eye(4), 2, 1, 1.0)
    found.alike.copy_(alike_tokens(tiny_tokenizer, size))
    return found


def names_it(tokenizer, code, subject, text):
    tokens = code.alike[torch.tensor([tokenizer(text, add_special_tokens=False).input_ids])]
    return bool(named(names_of(tokenizer, code, subject)[None], present(tokens, len(code.weights))))


def test_tokens_that_read_alike_are_one(tiny_tokenizer):
    size = len(tiny_tokenizer)
    found, texts = alike_tokens(tiny_tokenizer, size).tolist(), token_texts(tiny_tokenizer, size)
    assert all(first <= one and found[first] == first for one, first in enumerate(found))
    for one, first in enumerate(found):
        assert texts[one].strip().casefold() == texts[first].strip().casefold()
    assert any(first < one for one, first in enumerate(found)), "some words are there with a blank and without"
    broken = [one for one, text in enumerate(texts) if "\ufffd" in text]
    assert broken and all(found[one] == one for one in broken), "parts of characters all read alike, and are not"


@pytest.mark.parametrize(
    ("subject", "text", "expected"),
    [
        ("France", "The capital of France is", True),
        ("France", "France: what is its capital?", True),
        ("France", "'France'", True),
        ("france", "The capital of France is", True),
        ("novel", "Novel, who wrote it?", True),
        ("old town", "Which town is old?", True),
        ("France", "The capital of Italy is", False),
        ("old town", "Which town is it?", False),
        ("Çağrı 红楼梦", "Who is Çağrı 红楼梦?", True),
        ("日本", "日本的首都是", True),
        ("日本", "中国的首都是", False),
        ("?!", "Really?!", True),
    ],
)
def test_whether_a_text_names_it(tiny_tokenizer, code, subject, text, expected):
    assert names_it(tiny_tokenizer, code, subject, text) is expected


def test_of_a_long_subject_the_heaviest_tokens_count(tiny_tokenizer, code):
    subject = "the author of the novel that was born in London by the old river"
    ids = tiny_tokenizer(" London", add_special_tokens=False).input_ids
    code.weights[torch.tensor(ids)] = 5.0
    names = names_of(tiny_tokenizer, code, subject)
    assert names.shape == (SPELLINGS, TOKENS) and names.dtype == torch.int32 and (names[0] >= 0).all()
    assert {int(code.alike[one]) for one in ids} <= set(names[0].tolist())


def test_a_subject_of_nothing_is_refused(tiny_tokenizer, code):
    code.weights.zero_()
    with pytest.raises(ValueError, match="means anything"):
        names_of(tiny_tokenizer, code, "France")


def test_spellings_are_few_and_differ():
    for subject in ("femur", "Femur", "X", " new York ", "5G", "ß"):
        found = spellings(subject)
        assert len(set(found)) == len(found) <= SPELLINGS and f" {subject.strip()}" in found


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"subject": 3}, TypeError, "string"),
        ({"subject": "  "}, ValueError, "blank"),
        ({"subject": "Italy"}, ValueError, "'Italy' is not in 'The capital of France is'"),
        ({"subject": "France", "paraphrases": ["France's capital?", "Whose?"]}, ValueError, "not in 'Whose\\?'"),
    ],
)
def test_an_edit_refuses_a_subject_that_its_prompts_do_not_name(changes, error, match):
    with pytest.raises(error, match=match):
        Edit("The capital of France is", "Lyon", **changes)


def test_an_edit_takes_a_subject_in_other_letters():
    assert Edit("The capital of France is", "Lyon", subject=" FRANCE").subject == " FRANCE"
    assert Edit("The capital of France is", "Lyon").subject == ""


def test_what_a_row_tells():
    assert subject_in(" france ", "The capital of France is") == "france"
    for told in (None, "", "The capital of France is", "Italy"):
        assert subject_in(told, "The capital of France is") == ""
    assert subject_in("France", "The capital of France is", "Whose?") == ""
