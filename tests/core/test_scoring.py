"""Teacher-forced metrics, against a straight-line computation and on cases whose answer is known beforehand."""

import dataclasses

import pytest
import torch

from memoir_fast import RECIPES, Memoir, MemoirConfig
from memoir_fast.core.scoring import agreement, locality, target_accuracy, teacher_forced

PAIRS = (
    ("The capital of France is", "Rome"),
    ("Who wrote the play?", "The author of the novel"),
    ("Which animal lives in the desert?", "camel"),
    ("In which country is the mountain?", "Greek island"),
    ("What is the colour of the sky?", "old"),
)
STRANGERS = (("Hm", "yes"), ("0123456789 0123456789", "the river runs"), ("Who?", "The language of the island"))


@pytest.fixture
def memoir(tiny_llama, tiny_tokenizer):
    """Two of the pairs are taught, until the model predicts them."""
    recipe = dataclasses.replace(RECIPES["paper"], steps=40, learning_rate=4.0, prefixes=0)
    memoir = Memoir.attach(tiny_llama, tiny_tokenizer, MemoirConfig(recipe=recipe, k=12, tau=0.9, background=8))
    memoir.edit(PAIRS[:2], progress=False)
    return memoir


def straight_line(memoir, prompt, answer):
    """(target ids, predicted ids) of one pair, unpadded, its route decided on the prompt by a call of its own."""
    prompt_ids = memoir.tokenizer(prompt).input_ids
    ids = memoir.tokenizer(f"{prompt} {answer}").input_ids
    with torch.no_grad():
        memoir.model(torch.tensor([prompt_ids]))
        route = memoir.last_routes[0].edit_id
        with memoir.routed(route):
            logits = memoir.model(torch.tensor([ids])).logits[0]
    predicted = [int(logits[position - 1].argmax()) for position in range(len(prompt_ids), len(ids))]
    return ids[len(prompt_ids) :], predicted, route


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_equals_the_straight_line_at_any_batch_size(memoir, batch):
    items = teacher_forced(memoir, [*PAIRS, *STRANGERS], batch)
    for item, (prompt, answer) in zip(items, [*PAIRS, *STRANGERS], strict=True):
        assert (item.target, item.predicted, item.route.edit_id) == straight_line(memoir, prompt, answer)
    assert [item.route.edit_id for item in items[:2]] == [0, 1]
    assert {item.route.edit_id for item in items[2:]} == {-1}


def test_taught_targets_are_right_and_the_unedited_model_knows_none(memoir):
    with memoir.disabled():
        before = target_accuracy(memoir, PAIRS)
    after = target_accuracy(memoir, PAIRS)
    assert after[0] == 1.0 and after[1] > 0.7
    assert before[0] < 0.5 and after[2:] == before[2:]


def test_target_does_not_take_part_in_the_route(memoir):
    """The same prompt goes to its edit whatever follows; hashed with a long answer, it would not."""
    long = "what the river of the old town is to the mountain of the island and the desert"
    (item,) = teacher_forced(memoir, [(PAIRS[0][0], long)])
    assert item.route == (0, 1.0)
    ids = torch.tensor([memoir.tokenizer(f"{PAIRS[0][0]} {long}").input_ids])
    memoir.model(ids)
    assert memoir.last_routes[0].edit_id == -1


def test_locality(memoir):
    assert locality(memoir, STRANGERS) == [1.0, 1.0, 1.0]
    with memoir.disabled():
        old = teacher_forced(memoir, PAIRS[:1])[0]
    new = teacher_forced(memoir, PAIRS[:1])[0]
    assert locality(memoir, PAIRS[:1]) == [agreement(old.predicted, new.predicted)]
    assert locality(memoir, PAIRS[:1])[0] < 1.0


def test_logits_of_every_position_give_the_same(memoir, monkeypatch):
    """A model that cannot leave out the prompt's logits."""
    short = teacher_forced(memoir, PAIRS)
    forward = memoir.model.forward

    def whole(input_ids=None, attention_mask=None, use_cache=None):
        return forward(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)

    monkeypatch.setattr(memoir.model, "forward", whole)
    assert teacher_forced(memoir, PAIRS) == short


def test_agreement():
    assert agreement([1, 2, 3, 4], [1, 0, 3, 0]) == 0.5
    for one, other in (([], []), ([1], [1, 2])):
        with pytest.raises(ValueError, match="two sequences of one length, at least 1"):
            agreement(one, other)


def test_nothing_to_measure_and_what_cannot_be(memoir):
    assert target_accuracy(memoir, []) == [] and locality(memoir, []) == []
    with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
        target_accuracy(memoir, PAIRS, batch=0)
    with pytest.raises(ValueError, match="the model's context holds 256"):
        target_accuracy(memoir, [("word " * 200, "end")])
