"""mu, the mean feature of irrelevant prompts."""

import pytest
import torch

from memoir_fast.core.background import background_mean, features, irrelevant_prompts
from memoir_fast.hf.partial_forward import layer_input
from memoir_fast.modules import MemoirLinear

PROMPTS = ("The sky", "Who wrote the play? The author of the novel was born in London.", "Greek", "A river. " * 9)


@pytest.fixture
def layer(tiny_llama):
    """A memory in the middle block."""
    layer = MemoirLinear(tiny_llama.model.layers[1].mlp.down_proj, 8)
    tiny_llama.model.layers[1].mlp.down_proj = layer
    return layer


def test_the_packages_own_prompts():
    prompts = irrelevant_prompts()
    assert len(prompts) >= 100 and len(set(prompts)) == len(prompts)
    assert all(prompt.strip() == prompt and prompt for prompt in prompts)


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_features_do_not_depend_on_batches(tiny_llama, tiny_tokenizer, layer, batch):
    mu = torch.randn(48)
    found = features(tiny_llama, layer, tiny_tokenizer, PROMPTS, mu, batch)
    for row, prompt in zip(found, PROMPTS, strict=True):
        x = layer_input(tiny_llama, layer, input_ids=tiny_tokenizer(prompt, return_tensors="pt").input_ids)
        torch.testing.assert_close(row, x[0].mean(dim=0) - mu, rtol=1e-4, atol=1e-5)


def test_mu_is_the_mean_of_token_means(tiny_llama, tiny_tokenizer, layer):
    layer.mu.normal_()  # and what mu is now plays no part
    mu = background_mean(tiny_llama, layer, tiny_tokenizer, PROMPTS)
    expected = features(tiny_llama, layer, tiny_tokenizer, PROMPTS, torch.zeros(48)).mean(dim=0)
    assert mu.dtype == torch.float32 and torch.equal(mu, expected)
    with pytest.raises(ValueError, match="mu needs at least one irrelevant prompt, got none"):
        background_mean(tiny_llama, layer, tiny_tokenizer, [])


def test_the_model_is_left_as_it_was(tiny_llama, tiny_tokenizer, layer):
    ran = []
    tiny_llama.model.layers[2].register_forward_hook(lambda *_: ran.append(2))
    background_mean(tiny_llama, layer, tiny_tokenizer, PROMPTS)
    assert not ran and not layer._forward_pre_hooks and not tiny_llama.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in tiny_llama.parameters())


def test_a_forward_pass_that_misses_the_layer(tiny_llama, tiny_tokenizer):
    aside = MemoirLinear(torch.nn.Linear(48, 32), 8)
    with pytest.raises(RuntimeError, match="did not reach the edited layer"):
        background_mean(tiny_llama, aside, tiny_tokenizer, PROMPTS)
