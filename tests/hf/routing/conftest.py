"""A tiny Llama with a memory in its middle block, in which a routed row visibly differs from an unrouted one."""

import copy
from types import SimpleNamespace

import pytest
import torch

FACTS = ("The capital of France is", "Who wrote the play? The author", "Which animal lives in the desert?")


@pytest.fixture
def taught(tiny_llama, tiny_tokenizer):
    """A model whose memory holds one edit per fact, made without learning: their masks over a random memory.

    tau is 0.95, so that the facts alone match; `plain` is a second, unedited model with the same weights.
    """
    from memoir_fast import Edit, Memoir, MemoirConfig
    from memoir_fast.hf.partial_forward import layer_input

    plain = copy.deepcopy(tiny_llama)
    config = MemoirConfig(routing="paper", layer="model.layers.1.mlp.down_proj", k=20, tau=0.95)
    memoir = Memoir.attach(tiny_llama, tiny_tokenizer, config)

    def ids(text):
        return tiny_tokenizer(text, return_tensors="pt").input_ids

    def add(prompt):
        tokens = ids(prompt) if isinstance(prompt, str) else prompt
        x = layer_input(memoir.model, memoir.layer, input_ids=tokens)
        mask, columns = memoir.layer.hash(x)
        with memoir.edits.put(Edit(str(prompt), "x"), mask[0]) as edit_id:
            return edit_id

    for fact in FACTS:
        add(fact)
    memoir.layer.memory.weight.normal_()
    return SimpleNamespace(model=tiny_llama, plain=plain, memoir=memoir, ids=ids, add=add, tokenizer=tiny_tokenizer)


@pytest.fixture
def reference(taught):
    """Greedy continuation of one prompt along a given route, by full forward passes without a cache."""

    def generate(text, route, new, model=None):
        ids = taught.ids(text) if isinstance(text, str) else text
        with torch.no_grad(), taught.memoir.routed(route):
            for _ in range(new):
                logits = (model or taught.model)(input_ids=ids, use_cache=False).logits
                ids = torch.cat([ids, logits[:, -1].argmax(-1, keepdim=True)], dim=1)
        return ids[0].tolist()

    return generate
