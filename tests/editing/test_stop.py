"""`Recipe.stop`: the model says the target and ends."""

import dataclasses

import pytest
import torch

from memoir_fast import RECIPES, Edit, Memoir, MemoirConfig
from memoir_fast.hf.tokens import prompt_ids

FACT = Edit("The capital of France is", "Lyon")


def _said(llama, tokenizer, stop):
    recipe = dataclasses.replace(
        RECIPES["fast"], stop=stop, rest=False, rewordings=0, questions=0, prefixes=0, steps=500, learning_rate=0.1
    )
    memoir = Memoir.attach(llama, tokenizer, MemoirConfig(k=24, tau=0.9, recipe=recipe))
    memoir.edit(FACT)
    ids = torch.tensor([prompt_ids(tokenizer, FACT.prompt)])
    output = llama.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=30, do_sample=False)[0]
    memoir.detach()
    return output[ids.shape[1] :].tolist()


def test_the_answer_ends_after_the_target(tiny_llama, tiny_tokenizer):
    target, end = tiny_tokenizer(" Lyon").input_ids, tiny_tokenizer.eos_token_id
    assert _said(tiny_llama, tiny_tokenizer, stop=True) == [*target, end]
    on = _said(tiny_llama, tiny_tokenizer, stop=False)
    assert on[: len(target)] == target and len(on) > len(target) + 1, "the random model ends by itself: test nothing"


def test_it_has_a_recipe_by_name():
    stop = dataclasses.replace(RECIPES["fast"], stop=True, rest=False, boundary=False)
    assert RECIPES["fast-stop"] == stop and not RECIPES["fast"].stop


def test_every_row_is_closed_where_the_context_has_room(tiny_llama, tiny_tokenizer, monkeypatch):
    memoir = Memoir.attach(tiny_llama, tiny_tokenizer)
    end, few = tiny_tokenizer.eos_token_id, {"prefixes": 1, "rewordings": 2}
    recipe = dataclasses.replace(RECIPES["fast"], **few)
    stop = dataclasses.replace(recipe, stop=True)
    open_rows, closed = memoir.rows(FACT, recipe), memoir.rows(FACT, stop)
    assert [(row.ids + [end], row.prompt) for row in open_rows] == [tuple(row) for row in closed]

    monkeypatch.setattr(tiny_llama.config, "max_position_embeddings", len(open_rows[0].ids))
    assert memoir.rows(FACT, dataclasses.replace(stop, prefixes=0, rewordings=0, questions=0)) == open_rows[:1], (
        "no room for the end"
    )
    with pytest.raises(ValueError, match="the model's context holds"):
        memoir.rows(Edit(FACT.prompt, "Lyon Lyon"), stop)
    monkeypatch.undo()

    monkeypatch.setattr(type(tiny_tokenizer), "eos_token_id", None, raising=False)
    assert memoir.rows(FACT, stop) == open_rows
    memoir.detach()
