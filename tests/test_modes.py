"""Training mode, gradients and generators of random numbers are as before an edit, whatever mode it is made in."""

import copy
import dataclasses
import random

import numpy
import pytest
import torch

from memoir_fast import RECIPES, Memoir, MemoirConfig

LAYER = "model.layers.1.mlp.down_proj"
CONFIG = MemoirConfig(layer=LAYER, k=16, prefix_tokens=3, background=10, tau=0.95)
FACT, OTHER = ("The capital of France is", "Lyon"), ("Who wrote the play?", "a camel")


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("recipe", ["paper", "fast"])
def test_modes_gradients_and_generators_are_as_before(tiny_llama, tiny_tokenizer, training, recipe):
    tiny_llama.train(training)
    tiny_llama.model.layers[0].train(not training)
    tiny_llama.lm_head.weight.requires_grad_(False)

    def look():
        return (
            {name: module.training for name, module in tiny_llama.named_modules() if LAYER not in name},
            {name.replace(".base", ""): parameter.requires_grad for name, parameter in tiny_llama.named_parameters()},
            [parameter.grad for parameter in tiny_llama.parameters()],
            torch.random.get_rng_state().tolist(),
            random.getstate(),
            str(numpy.random.get_state()),
            torch.is_grad_enabled(),
            torch.get_default_dtype(),
        )

    before = look()
    memoir = Memoir.attach(tiny_llama, tiny_tokenizer, CONFIG)
    assert all(module.training == training for module in memoir.layer.modules())
    memoir.edit([FACT, OTHER], recipe=dataclasses.replace(RECIPES[recipe], prefixes=1, steps=3), progress=False)
    memoir.delete(0)
    assert look() == before


@pytest.mark.parametrize(
    ("mode", "recipe"),
    [
        (torch.enable_grad, "paper"),
        (torch.enable_grad, "fast"),
        (torch.no_grad, "paper"),
        (torch.no_grad, "fast"),
        (torch.inference_mode, "paper"),
        (torch.inference_mode, "fast"),
    ],
)
def test_editing_within_any_gradient_mode(tiny_llama, tiny_tokenizer, mode, recipe):
    other = copy.deepcopy(tiny_llama)
    settings = dataclasses.replace(RECIPES[recipe], prefixes=1, steps=3)
    expected = Memoir.attach(other, tiny_tokenizer, CONFIG)
    expected.edit(*FACT, recipe=settings)
    with mode():
        memoir = Memoir.attach(tiny_llama, tiny_tokenizer, CONFIG)
        memoir.edit(*FACT, recipe=settings)
    memoir.edit(*OTHER, recipe=settings)
    expected.edit(*OTHER, recipe=settings)
    assert torch.equal(memoir.layer.memory.weight, expected.layer.memory.weight)
    ids = tiny_tokenizer(FACT[0], return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(tiny_llama(ids).logits, other(ids).logits)
