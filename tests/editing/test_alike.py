"""Where an edited model shall say what the unedited one says: after the target, and behind neighbours' prompts."""

import dataclasses

import pytest
import torch

from memoir_fast import RECIPES, Edit, Memoir, MemoirConfig
from memoir_fast.editing.alike import ends_word
from memoir_fast.editing.batch import Batch, Request
from memoir_fast.hf.tokens import Row, prompt_ids

FACT = Edit("The capital of France is", "Lyon")
OTHER = "The capital of Italy is"
RECIPE = dataclasses.replace(RECIPES["fast"], prefixes=1, rewordings=1, steps=500, learning_rate=0.1)


@pytest.fixture
def memoir(tiny_llama, tiny_tokenizer):
    return Memoir.attach(tiny_llama, tiny_tokenizer, MemoirConfig(k=24, tau=0.2, routing="paper", recipe=RECIPE))


def quiet_row(memoir, text):
    ids = prompt_ids(memoir.tokenizer, text)
    return Row(ids, len(ids))


def unedited(memoir, ids):
    with torch.no_grad(), memoir.disabled():
        return memoir.model(torch.tensor([ids])).logits[0, -1].softmax(dim=-1)


@pytest.mark.parametrize(
    ("target", "expected"),
    [("Lyon", True), ("18443", True), ("Yes.", False), ("东京", False), ("x ", True), ("!", False)],
)
def test_targets_that_a_letter_would_change(target, expected):
    assert ends_word(target) is expected


def test_without_a_change_nothing_is_unlike_and_with_one_it_is_the_divergence(memoir):
    request = Request(FACT, memoir.rows(FACT), [quiet_row(memoir, OTHER)], False)
    batch = Batch(memoir._context, [request])
    batch.choose([0])
    nothing = torch.zeros(len(batch.tokens), memoir.layer.out_features)
    own, apart = batch.losses(nothing)
    assert own.item() > 0.1 and apart.item() == pytest.approx(0, abs=1e-6)
    changed = torch.randn_like(nothing)
    _, apart = batch.losses(changed)
    expected = unedited(memoir, request.quiet[0].ids)
    lower = batch._all.select(torch.tensor([len(request.rows)]))
    padded = torch.zeros(1, lower.x.shape[1], changed.shape[1])
    length = len(request.quiet[0].ids)
    padded[0, :length] = changed[-length:]
    logits = memoir._context.upper.logits(lower, padded, (torch.tensor([0]), torch.tensor([length - 1])))[0]
    divergence = (expected * (expected.log() - logits.log_softmax(dim=-1))).sum()
    assert apart.item() == pytest.approx(divergence.item(), rel=1e-3)


def test_several_edits_each_with_its_own(memoir):
    edits = [FACT, Edit("Who wrote the play?", "Ann."), Edit("The sky is", "green")]
    requests = [
        Request(edits[0], memoir.rows(edits[0]), [quiet_row(memoir, OTHER)], True),
        Request(edits[1], memoir.rows(edits[1]), [], False),
        Request(edits[2], memoir.rows(edits[2]), [quiet_row(memoir, "The river is")] * 2, False),
    ]
    together = Batch(memoir._context, requests)
    change = torch.randn(len(together.tokens), memoir.layer.out_features)
    for chosen in ([0, 1, 2], [0, 2], [1], [2]):
        together.choose(chosen)
        spans = [together.spans[one] for one in chosen]
        own, apart = together.losses(torch.cat([change[span] for span in spans]))
        for place, number in enumerate(chosen):
            alone = Batch(memoir._context, [requests[number]])
            alone.choose([0])
            expected = alone.losses(change[together.spans[number]])
            torch.testing.assert_close(
                torch.stack([own[place], apart[place]]), torch.cat(expected), rtol=1e-4, atol=1e-5
            )
            assert (apart[place] == 0) == (number == 1)


def test_what_comes_after_the_target_begins_a_word(memoir):
    result = memoir.edit(FACT, recipe=dataclasses.replace(RECIPE, boundary=True, prefixes=0, rewordings=0, questions=0))
    ids = prompt_ids(memoir.tokenizer, FACT.prompt)
    target = len(memoir.tokenizer(" Lyon").input_ids)
    assert result.edit_id == 0 and memoir.layer.store.target_tokens[0].tolist() == [target + 1] * 2
    said = memoir.model.generate(torch.tensor([ids]), max_new_tokens=target + 1, do_sample=False)[0, len(ids) :]
    text = memoir.tokenizer.decode(said)
    assert text.startswith(" Lyon") and not text[5:6].isalnum(), text


def test_a_prompt_that_is_kept_is_answered_as_before(memoir):
    ids = prompt_ids(memoir.tokenizer, OTHER)
    before = unedited(memoir, ids)
    memoir.edit(FACT)
    with torch.no_grad():
        changed = memoir.model(torch.tensor([ids])).logits[0, -1].softmax(dim=-1)
    assert memoir.last_routes[0].edit_id == 0, "the neighbour must match here"
    memoir.delete(0)
    memoir.edit(dataclasses.replace(FACT, keep=(OTHER,)))
    with torch.no_grad():
        kept = memoir.model(torch.tensor([ids])).logits[0, -1].softmax(dim=-1)
    assert memoir.last_routes[0].edit_id == 1
    apart = [float((before * (before.log() - one.log())).sum()) for one in (changed, kept)]
    assert apart[1] < 0.2 < apart[0] and apart[1] < apart[0] / 4, apart
