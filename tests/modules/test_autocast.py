"""A model that runs in `torch.autocast`: routes and edits are those of any other, and unmatched prompts are its own."""

import copy
import dataclasses

import pytest
import torch

from memoir_fast import RECIPES, Memoir, MemoirConfig
from memoir_fast.modules.autocast import without_autocast

FACT, OTHER = "The capital of France is", "Which animal lives in the desert of"
QUICK = dataclasses.replace(RECIPES["fast"], steps=2)


def _autocast():
    return torch.autocast("cpu", dtype=torch.bfloat16)


def test_a_function_and_what_it_calls_are_not_rounded():
    one = torch.ones(2, 2)

    @without_autocast()
    def product():
        return one @ one

    assert product().dtype == torch.float32
    for _ in range(2):
        with _autocast():
            assert product().dtype == torch.float32 and (one @ one).dtype == torch.bfloat16


@pytest.mark.parametrize("routing", ["early", "paper"])
def test_what_is_taught_and_asked_within_it(tiny_llama, tiny_tokenizer, routing):
    plain = copy.deepcopy(tiny_llama)
    tiny_llama.register_forward_hook(lambda *_: None)  # so that its routing code is made here, not taken from a test
    other = copy.deepcopy(tiny_llama)
    config = MemoirConfig(layer="model.layers.1.mlp.down_proj", k=20, routing=routing, tau=0.9)
    given = tiny_tokenizer([FACT, OTHER], return_tensors="pt", padding=True)
    given = {name: given[name] for name in ("input_ids", "attention_mask")}
    outside = Memoir.attach(other, tiny_tokenizer, config)
    outside.edit(FACT, "Lyon", recipe=QUICK)
    with _autocast(), torch.no_grad():
        memoir = Memoir.attach(tiny_llama, tiny_tokenizer, config)
        memoir.edit(FACT, "Lyon", recipe=QUICK)
        found, expected, unedited = (one(**given).logits for one in (tiny_llama, other, plain))
        assert torch.equal(found, expected), "the same was learned"
        assert torch.equal(found[1], unedited[1]) and not torch.equal(found[0], unedited[0])
        assert all(map(torch.equal, memoir.hash(OTHER), outside.hash(OTHER)))
        for one in (memoir, outside):
            embeds = one.model.get_input_embeddings()(given["input_ids"])
            one.model.generate(inputs_embeds=embeds, attention_mask=given["attention_mask"], max_new_tokens=2)
            assert [route.edit_id for route in one.last_routes] == [0, -1]
