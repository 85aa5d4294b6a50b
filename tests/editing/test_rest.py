"""`Recipe.rest`: once the target has been said, the memory adds nothing, whoever generates and however."""

import dataclasses

import pytest
import torch
from cache_name import CACHE

from memoir_fast import RECIPES, Edit, Memoir, MemoirConfig
from memoir_fast.hf.cache import remembered
from memoir_fast.hf.tokens import prompt_ids

FACT = Edit("The capital of France is", "Lyon on the river")
RECIPE = dataclasses.replace(
    RECIPES["fast"], prefixes=0, rewordings=0, questions=0, steps=500, learning_rate=0.1, boundary=False
)


@pytest.fixture(params=["paper", "early"])
def memoir(request, tiny_llama, tiny_tokenizer):
    found = Memoir.attach(
        tiny_llama, tiny_tokenizer, MemoirConfig(k=24, tau=0.9, routing=request.param, routing_block=1, recipe=RECIPE)
    )
    found.edit(FACT)  # said, though such a model is never sure of it
    return found


@pytest.fixture
def ids(memoir):
    return torch.tensor([prompt_ids(memoir.tokenizer, FACT.prompt)])


@pytest.fixture
def target(memoir):
    return len(memoir.tokenizer(f" {FACT.target}").input_ids)


def greedy(memoir, ids, tokens, **options):
    return memoir.model.generate(ids, max_new_tokens=tokens, do_sample=False, **options)[0, ids.shape[1] :].tolist()


def added(memoir, run):
    """Per call of the layer in `run`, to which tokens of the first row it added anything."""
    seen = []

    def note(layer, args, output):
        seen.append((output != layer.base(args[0]))[0].any(dim=-1).tolist())

    handle = memoir.layer.register_forward_hook(note)
    run()
    handle.remove()
    return seen


def test_the_target_is_said_with_its_help_and_nothing_else(memoir, ids, target):
    calls = added(memoir, lambda: greedy(memoir, ids, target + 5))
    assert memoir.tokenizer.decode(greedy(memoir, ids, target)) == f" {FACT.target}"
    assert any(calls[0]) and len(calls[0]) == ids.shape[1]
    assert calls[1:] == [[True]] * (target - 1) + [[False]] * 5


def test_what_comes_then_is_the_unedited_models_own(memoir, ids, target):
    said = greedy(memoir, ids, target + 8)
    out = memoir.model.generate(ids, max_new_tokens=target, do_sample=False, return_dict_in_generate=True)
    cache, token, rest = out[CACHE], out.sequences[:, -1:], []
    with memoir.disabled(), torch.no_grad():
        for _ in range(8):
            token = memoir.model(token, **{CACHE: cache}).logits[:, -1:].argmax(dim=-1)
            rest.append(token.item())
    assert said[target:] == rest


def test_one_pass_over_prompt_and_answer_helps_as_long(memoir, ids, target):
    whole = torch.cat([ids, torch.tensor([greedy(memoir, ids, target + 4)])], dim=1)
    with memoir.prompts(ids.shape[1]), torch.no_grad():
        calls = added(memoir, lambda: memoir.model(whole))
    assert calls[0][ids.shape[1] :] == [True] * (target - 1) + [False] * 5
    step_by_step = [one[0] for one in added(memoir, lambda: greedy(memoir, ids, target + 5))[1:]]
    assert calls[0][ids.shape[1] :] == step_by_step


def test_tokens_that_are_tried_together_and_taken_back(memoir, ids, target):
    """Prompt lookup tries several tokens in a pass; what it gives is what comes one by one."""
    plain = greedy(memoir, ids, target + 10)
    assert greedy(memoir, ids, target + 10, prompt_lookup_num_tokens=3) == plain


def test_rows_of_a_batch_rest_each_in_its_time(memoir):
    memoir.edit("Who wrote the play?", "Bob")
    batch = memoir.tokenizer([FACT.prompt, "Who wrote the play?", "A camel"], return_tensors="pt", padding=True)
    together = memoir.model.generate(**batch, max_new_tokens=24, do_sample=False)[:, batch.input_ids.shape[1] :]
    for row, prompt in enumerate((FACT.prompt, "Who wrote the play?")):
        alone = greedy(memoir, torch.tensor([prompt_ids(memoir.tokenizer, prompt)]), 24)
        length = len(memoir.tokenizer(f" {memoir.edits[row].target}").input_ids)
        assert together[row, :length].tolist() == alone[:length]
    state = remembered(memoir.model.generate(**batch, max_new_tokens=3, return_dict_in_generate=True)[CACHE])
    assert (state.left[:2] < 2**29).all() and state.route.tolist() == [0, 1, -1]


def test_an_edit_that_never_rests(memoir, ids, target):
    memoir.edit(FACT, recipe=dataclasses.replace(RECIPE, rest=False))
    assert memoir.layer.store.target_tokens[0].tolist() == [0, 0]
    calls = added(memoir, lambda: greedy(memoir, ids, target + 5))
    assert all(one == [True] for one in calls[1:])


def test_it_is_saved_and_loaded(memoir, ids, target, tmp_path):
    said = greedy(memoir, ids, target + 8)
    memoir.save_pretrained(tmp_path)
    model, tokenizer = memoir.detach(), memoir.tokenizer
    again = Memoir.from_pretrained(model, tokenizer, tmp_path)
    assert greedy(again, ids, target + 8) == said and again.layer.store.rests
    assert again.layer.store.target_tokens[0].tolist() == [target, target]
