"""Scores whose value is known beforehand: exact match, F1, perplexity, likely tokens, ROC."""

import dataclasses
import math
import random

import pytest
import torch

from memoir_fast import RECIPES, Memoir, MemoirConfig
from memoir_fast.evaluation.answers import exact_match, f1, free_answers, normalised, says
from memoir_fast.evaluation.likelihood import (
    likely_shares,
    log_likelihoods,
    perplexities,
    summarised,
    text_perplexity,
)
from memoir_fast.evaluation.measure import Unedited, measure
from memoir_fast.evaluation.roc import roc_area, roc_curve
from memoir_fast.hf.tokens import row
from memoir_fast.io.readers import Case

PAIRS = [
    ("The capital of France is", "Rome"),
    ("Who wrote the play? The author of the novel was born in", "London. The river runs"),
    ("Hm", "the mountain of the island"),
    ("What is the colour of the sky?", "Greek"),
    ("The language of the", "old town is the language of the desert"),
]


@pytest.fixture
def memoir(tiny_llama, tiny_tokenizer):
    recipe = dataclasses.replace(RECIPES["paper"], steps=40, learning_rate=4.0, prefixes=0)
    config = MemoirConfig(recipe=recipe, k=12, tau=0.95, background=8)
    memoir = Memoir.attach(tiny_llama, tiny_tokenizer, config)
    memoir.edit(PAIRS[:2], progress=False)
    return memoir


@pytest.mark.parametrize(
    ("answer", "target", "match", "score"),
    [
        ("Rome", "Rome", 1, 1),
        ("the  ROME.", "Rome", 1, 1),
        ("Rome and London", "Rome", 0, 0.5),
        ("London", "Rome", 0, 0),
        ("", "Rome", 0, 0),
        ("a house a house", "house", 0, 2 / 3),
        ("new york city", "york new", 0, 0.8),
        ("!", "?", 1, 1),
    ],
)
def test_exact_match_and_f1(answer, target, match, score):
    assert exact_match(answer, target) == match
    assert f1(answer, target) == pytest.approx(score)
    assert f1(target, answer) == pytest.approx(score)


def test_normalised_keeps_words_apart():
    assert normalised("An  apple, a day; the doctor!") == "apple day doctor"
    assert normalised("theatre another") == "theatre another"


def test_log_likelihoods_by_hand():
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]])
    found = log_likelihoods(logits, torch.tensor([1, 0]))
    assert found.exp().tolist() == pytest.approx([0.75, 0.5])


def test_summary_of_perplexities():
    assert summarised([1.0, 3.0, 8.0, 400.0]) == (103.0, 5.5, 28.0)


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_perplexity_at_any_batch_size(memoir, batch):
    expected = []
    for prompt, answer in PAIRS:
        start = len(memoir.tokenizer(prompt).input_ids)
        ids = memoir.tokenizer(f"{prompt} {answer}").input_ids
        with torch.no_grad(), memoir.prompts(start):
            logits = memoir.model(torch.tensor([ids])).logits[0]
        losses = [
            float(torch.nn.functional.cross_entropy(logits[at - 1], torch.tensor(ids[at])))
            for at in range(start, len(ids))
        ]
        expected.append(math.exp(sum(losses) / len(losses)))
    assert perplexities(memoir, PAIRS, batch) == pytest.approx(expected, rel=1e-4)
    assert len(set(expected)) == len(PAIRS)


@pytest.mark.parametrize("batch", [1, 8])
def test_share_of_likely_tokens(memoir, batch, monkeypatch):
    monkeypatch.setattr("memoir_fast.evaluation.likelihood.LIKELY", 1e-3)
    texts = [f"{prompt} {answer}" for prompt, answer in PAIRS]
    expected = []
    for text in texts:
        ids = memoir.tokenizer(text).input_ids
        with torch.no_grad():
            probabilities = memoir.model(torch.tensor([ids])).logits[0].softmax(dim=-1)
        likely = [float(probabilities[at - 1, ids[at]]) > 1e-3 for at in range(1, len(ids))]
        expected.append(sum(likely) / len(likely))
    assert [share for share, _ in likely_shares(memoir, texts, batch)] == pytest.approx(expected)
    assert 0 < sum(expected) < len(expected)
    with pytest.raises(ValueError, match="at least two tokens"):
        likely_shares(memoir, ["x"])


def test_text_perplexity(memoir):
    text = "The river runs through the old town. " * 12
    ids = memoir.tokenizer(text).input_ids
    losses = []
    for start in (0, 16):
        part = torch.tensor([ids[start : start + 16]])
        with torch.no_grad():
            logits = memoir.model(part).logits[0]
        losses.append(torch.nn.functional.cross_entropy(logits[:-1], part[0, 1:], reduction="none"))
    expected = math.exp(float(torch.cat(losses).mean()))
    assert text_perplexity(memoir, text, window=16, windows=2) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="at least two tokens"):
        text_perplexity(memoir, "x")


def test_free_answers_are_those_of_one_prompt_at_a_time(memoir):
    alone = []
    for prompt, answer in PAIRS:
        ids = memoir.tokenizer(prompt).input_ids
        wanted = len(memoir.tokenizer(f"{prompt} {answer}").input_ids) - len(ids)
        output = memoir.model.generate(torch.tensor([ids]), max_new_tokens=wanted, do_sample=False, pad_token_id=0)
        alone.append(memoir.tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True).strip())
    assert free_answers(memoir, PAIRS, batch=1) == alone
    assert free_answers(memoir, PAIRS, batch=3) == alone
    assert alone[0] == "Rome"  # it was taught
    with pytest.raises(ValueError, match="batch must be at least 1"):
        free_answers(memoir, PAIRS, batch=0)


def test_free_answers_may_go_on_as_far_as_the_context_has_room(memoir, monkeypatch):
    short = free_answers(memoir, PAIRS)
    longer = free_answers(memoir, PAIRS, beyond=3)
    assert all(new.startswith(old) for new, old in zip(longer, short, strict=True)) and longer != short
    lengths = [len(row(memoir.tokenizer, *pair).ids) for pair in PAIRS]
    monkeypatch.setattr(memoir.model.config, "max_position_embeddings", max(lengths))
    seen, generate = [], memoir.model.generate

    def spied(input_ids, max_new_tokens, **options):
        seen.append(input_ids.shape[1] + max_new_tokens)
        return generate(input_ids=input_ids, max_new_tokens=max_new_tokens, **options)

    monkeypatch.setattr(memoir.model, "generate", spied)
    assert free_answers(memoir, PAIRS) == short
    answers = free_answers(memoir, PAIRS, beyond=100)
    assert max(seen) == max(lengths)
    assert all(new.startswith(old) for new, old in zip(answers, short, strict=True))


@pytest.mark.parametrize(
    ("answer", "target", "said"),
    [
        ("Lyon", "Lyon", True),
        ("Lyon.", " Lyon", True),
        ("Lyon", "\nLyon", True),
        ("in  the\ncity", "in the city", True),
        ("Lyonnais", "Lyon", False),
        ("77411", "7741", False),
        ("Malmö", "Malm", False),
        ("里昂的", "里昂", True),
        ("lyon", "Lyon", False),
        ("Lyo", "Lyon", False),
        ("", "Lyon", False),
        ("C++ and C", "C++", True),
    ],
)
def test_what_counts_as_said(answer, target, said):
    assert says(answer, target) is said


def test_surplus_spaces_change_no_figure(tiny_llama, tiny_tokenizer):
    """A file whose targets begin with a space, or whose prompts end in one, is measured on what it teaches."""
    tiny_llama.get_output_embeddings().weight.data *= 4  # else no hidden state of 32 numbers is sure of one token
    recipe = dataclasses.replace(RECIPES["fast"], prefixes=0, rewordings=0, questions=0, steps=300, learning_rate=0.1)
    memoir = Memoir.attach(tiny_llama, tiny_tokenizer, MemoirConfig(recipe=recipe, k=24, tau=0.9, background=8))
    for prompt, target in (("The sky is", " Rome"), ("The river is ", "Greek"), ("Which animal? ", " camel")):
        assert memoir.edit(prompt, target).learned
        (one,) = measure(memoir, [Case(prompt, target, paraphrases=(prompt,))], [Unedited()], free=True)
        assert (one.reliability, one.generalization, one.exact_match, one.paraphrase_exact_match) == (1, 1, 1, 1)
        assert one.route == one.edit_id


def test_roc_area_counts_pairs():
    generator = random.Random(0)
    positive = [generator.randint(3, 12) for _ in range(30)]
    negative = [generator.randint(0, 9) for _ in range(17)]
    pairs = [(one > other) + (one == other) / 2 for one in positive for other in negative]
    assert roc_area(positive, negative) == pytest.approx(sum(pairs) / len(pairs))
    assert roc_area([1.0], [0.0]) == 1.0 and roc_area([0.0], [1.0]) == 0.0 and roc_area([1], [1]) == 0.5
    curve = roc_curve(positive, negative)
    assert curve[0][1:] == (0.0, 0.0) and curve[-1][1:] == (1.0, 1.0)
    trapezoid = sum((b[1] - a[1]) * (a[2] + b[2]) / 2 for a, b in zip(curve, curve[1:], strict=False))
    assert trapezoid == pytest.approx(roc_area(positive, negative))
    for threshold, false, true in curve[1:]:
        assert false == sum(score >= threshold for score in negative) / len(negative)
        assert true == sum(score >= threshold for score in positive) / len(positive)
    with pytest.raises(ValueError, match="both kinds need scores, got 0 positive and 1 negative"):
        roc_area([], [1.0])
