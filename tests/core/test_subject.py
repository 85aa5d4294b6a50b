"""A subject as tokens, and which tokens are one word."""

import pytest
import tokenizers
import torch
from transformers import PreTrainedTokenizerFast

from memoir_fast import Edit
from memoir_fast.core.edit import subject_in
from memoir_fast.core.subject import alike_tokens, names_of, spellings
from memoir_fast.hf.tokens import token_texts
from memoir_fast.modules.naming import SPELLINGS, TOKENS, named, present
from memoir_fast.modules.routing_code import RoutingCode


def code_of(tokenizer):
    size = len(tokenizer)
    weights = torch.ones(size)
    weights[[one for one, text in enumerate(token_texts(tokenizer, size)) if not text.strip()]] = 0
    found = RoutingCode(weights, torch.zeros(size).byte(), torch.zeros(4), torch.eye(4), 2, 1, 1.0)
    found.alike.copy_(alike_tokens(tokenizer, size))
    return found


@pytest.fixture
def code(tiny_tokenizer):
    return code_of(tiny_tokenizer)


@pytest.fixture(scope="module")
def with_prefix():
    """As SentencePiece has it: a text begins as if a space stood before it, and what is behind a quote does not."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    made.decoder = tokenizers.decoders.Metaspace()
    texts = ["the femur is a bone", 'what is "a bone"?', "in the land of Japan and new york"] * 3
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>"], show_progress=False)
    made.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


def names_it(tokenizer, code, subject, text, prompts=()):
    tokens = code.alike[torch.tensor([tokenizer(text, add_special_tokens=False).input_ids])]
    names = names_of(tokenizer, code, subject, [tokenizer(one).input_ids for one in prompts])
    return bool(named(names[None], present(tokens, len(code.weights))))


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


@pytest.mark.parametrize("subject", ["femur", "Japan", "land of Japan"])
def test_a_subject_behind_a_quote(with_prefix, subject):
    code = code_of(with_prefix)
    plain, quoted = (with_prefix(text).input_ids for text in (subject, f'"{subject}"'))
    assert not set(plain) <= set(quoted), "it has other tokens there"
    for text in (f'what is "{subject}"?', f"{subject} is", f"the {subject} is"):
        assert names_it(with_prefix, code, subject, text), text
    assert not names_it(with_prefix, code, subject, 'what is "a bone"?')


def test_of_a_long_subject_the_heaviest_tokens_count(tiny_tokenizer, code):
    subject = "the author of the novel that was born in London by the old river"
    ids = tiny_tokenizer(" London", add_special_tokens=False).input_ids
    code.weights[torch.tensor(ids)] = 5.0
    names = names_of(tiny_tokenizer, code, subject)
    assert names.shape == (SPELLINGS, TOKENS) and names.dtype == torch.int32 and (names[0] >= 0).all()
    assert {int(code.alike[one]) for one in ids} <= set(names[0].tolist())


@pytest.mark.parametrize(
    ("subject", "prompt"),
    [
        ("nove", "Who wrote the novel?"),
        ("capital of franc", "The capital of France is"),
        ("riveR", "the riVER runs"),
        ("STRASSE", "Die Straße ist"),
        ("日本的", "日本的首都是"),
        ("is", "is"),
    ],
)
def test_an_edits_own_prompt_names_it(tiny_tokenizer, code, subject, prompt):
    """Whatever tokens it has there: a part of a word, or a case of letters that no spelling has."""
    other = "Which animal lives there?"
    assert names_it(tiny_tokenizer, code, subject, prompt, [prompt])
    assert not names_it(tiny_tokenizer, code, subject, other, [prompt])
    first = tiny_tokenizer(prompt, add_special_tokens=False).input_ids
    written = names_of(tiny_tokenizer, code, subject, [first]).tolist()
    assert all(
        any({*one} - {-1} == {*row} - {-1} for row in written)
        for one in names_of(tiny_tokenizer, code, subject)[:2].tolist()
    )


def test_only_what_is_not_named_yet_is_a_further_spelling(tiny_tokenizer, code):
    prompts = [tiny_tokenizer(one).input_ids for one in ("The capital of France is", "France: its capital is")]
    assert torch.equal(names_of(tiny_tokenizer, code, "France", prompts), names_of(tiny_tokenizer, code, "France"))


def test_prompts_that_cannot_name_it_are_refused(tiny_tokenizer, code):
    def prompts(*texts):
        return [tiny_tokenizer(one).input_ids for one in texts]

    with pytest.raises(ValueError, match="'France' is not in 'Which river"):
        names_of(tiny_tokenizer, code, "France", prompts("The capital of France is", "Which river is it?"))
    words = [one for one in token_texts(tiny_tokenizer, len(code.weights)) if "o" in one[2:] and one[0] == " "]
    with pytest.raises(ValueError, match="more than 5 ways"):
        names_of(tiny_tokenizer, code, "o", prompts(*words))


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
