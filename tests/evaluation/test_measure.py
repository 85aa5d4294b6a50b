"""Measures on edits made by hand and on forced routes: each is seen to fall where it must, and to be None elsewhere."""

import dataclasses

import pytest

from memoir_fast import RECIPES, Memoir, MemoirConfig
from memoir_fast.core.scoring import locality, target_accuracy
from memoir_fast.evaluation.measure import Unedited, figures, measure, without_memory
from memoir_fast.io.readers import Case

OWN, OTHER = ("The sky is", "Rome"), ("The river is", "Greek")
UNRELATED = ("How many of them?", "old")
NEAR = (OTHER[0], "the island")  # an edit's own prompt: what a neighbour is where all goes wrong


@pytest.fixture
def memoir(tiny_llama, tiny_tokenizer):
    tiny_llama.get_output_embeddings().weight.data *= 4  # else no hidden state of 32 numbers is sure of one token
    recipe = dataclasses.replace(RECIPES["fast"], prefixes=0, rewordings=0, questions=0, steps=300, learning_rate=0.1)
    memoir = Memoir.attach(tiny_llama, tiny_tokenizer, MemoirConfig(recipe=recipe, k=24, tau=0.9, background=8))
    for edit in (OWN, OTHER):
        assert memoir.edit(*edit).learned
    return memoir


def measured(memoir, case):
    (one,) = measure(memoir, [case], without_memory(memoir, [case]))
    return one


def test_neighbours_that_reach_an_edit(memoir):
    case = Case(*OWN, locality=(UNRELATED, NEAR), neighbours=(NEAR,))
    one = measured(memoir, case)
    apart = locality(memoir, [UNRELATED, NEAR])
    assert apart[0] == 1.0 > apart[1]
    assert (one.neighbours_matched, one.neighbours_unchanged) == (1.0, apart[1])
    assert one.locality == pytest.approx(sum(apart) / 2)  # they count in it as all others do
    assert one.locality_routes == [-1, 1]


@pytest.mark.parametrize(("route", "matched"), [(0, 1.0), (1, 1.0), (-1, 0.0)])
def test_neighbours_on_forced_routes(memoir, route, matched):
    case = Case(*OWN, locality=(UNRELATED, NEAR), neighbours=(NEAR, UNRELATED))
    plain = without_memory(memoir, [case])
    with memoir.routed(route):
        (one,) = measure(memoir, [case], plain)
    assert one.neighbours_matched == matched
    assert one.neighbours_unchanged == one.locality
    assert (one.neighbours_unchanged == 1.0) == (route == -1)


def test_paraphrases_count_where_they_reach_their_own_edit(memoir):
    cases = [
        Case(*OWN, paraphrases=(OWN[0], OTHER[0], UNRELATED[0])),
        Case(*OTHER, paraphrases=(OTHER[0],)),
        Case("Never taught", "Rome", paraphrases=(OWN[0],)),
        Case(*OWN),
    ]
    plain = without_memory(memoir, cases)
    found = measure(memoir, cases, plain)
    assert [one.paraphrases_routed for one in found] == [pytest.approx(1 / 3), 1.0, None, None]
    assert figures(found)["paraphrases_routed"] == pytest.approx(2 / 3)
    with memoir.routed(0):
        forced = measure(memoir, cases, plain)
    assert [one.paraphrases_routed for one in forced] == [1.0, 0.0, None, None]


def test_portability_before_is_that_of_the_unedited_model(memoir):
    case = Case(*OWN, portability=(OWN, ("The island is", "old")))
    one = measured(memoir, case)
    after = target_accuracy(memoir, case.portability)
    with memoir.disabled():
        before = target_accuracy(memoir, case.portability)
    assert before[0] < after[0] == 1.0
    assert one.portability == pytest.approx(sum(after) / 2)
    assert one.portability_before == pytest.approx(sum(before) / 2)
    assert one.portability_before < one.portability
    assert figures([one])["portability_before"] == one.portability_before


def test_nothing_to_measure_on(memoir):
    one = measured(memoir, Case(*OWN, locality=(UNRELATED,)))
    names = ("portability_before", "paraphrases_routed", "neighbours_matched", "neighbours_unchanged")
    assert [getattr(one, name) for name in names] == [None] * 4
    assert [figures([one])[name] for name in names] == [None] * 4
    assert one.locality == 1.0


def test_a_neighbour_is_one_of_the_locality_prompts(memoir):
    case = Case(*OWN, locality=(UNRELATED,), neighbours=(NEAR,))
    with pytest.raises(ValueError):
        measured(memoir, case)
    with pytest.raises(ValueError):
        measure(memoir, [Case(*OWN, locality=(UNRELATED,))], [Unedited()])
