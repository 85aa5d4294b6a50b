"""`recipe="paper"` against a loop that follows the paper word by word: whole model, dense W_m, one row at a time."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F

from memoir_fast import Memoir, MemoirConfig
from memoir_fast.core.background import irrelevant_prompts
from memoir_fast.editing.paper import row_losses
from memoir_fast.recipe import RECIPES

LAYER = "model.layers.1.mlp.down_proj"
K = 16
EDITS = [("The capital of France is", "Lyon"), ("Who wrote the play?", "The desert"), ("The sky is", "a river in Rome")]


class Straight:
    """The published procedure without any machinery: W_m is a dense [O, D] leaf, added by a hook."""

    def __init__(self, model, tokenizer, permutation, prefixes):
        self.model, self.tokenizer, self.prefixes = model, tokenizer, prefixes
        self.layer = model.get_submodule(LAYER)
        outputs, self.width = self.layer.weight.shape
        self.permutation = permutation
        self.memory = torch.zeros(outputs, self.width, dtype=torch.float64)
        means = [self.activations(prompt).mean(dim=0) for prompt in irrelevant_prompts()[:100]]
        self.mu = torch.stack(means).mean(dim=0)

    def ids(self, text):
        return self.tokenizer(text, return_tensors="pt").input_ids

    def activations(self, text):
        seen = []
        hook = self.layer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        with torch.no_grad():
            self.model(self.ids(text))
        hook.remove()
        return seen[0][0]

    def mask(self, prompt):
        feature = self.activations(prompt).mean(dim=0) - self.mu
        mask = torch.zeros(self.width, dtype=torch.float64)
        mask[self.permutation.long()[feature.abs().topk(K).indices]] = 1
        return mask

    def edit(self, prompt, target, steps, decay):
        mask = self.mask(prompt)
        texts = [prompt] + [f"{p} {prompt}" if p[-1] in ".!?" else f"{p}. {prompt}" for p in self.prefixes]
        weight = self.memory.clone().requires_grad_()
        optimiser = torch.optim.SGD([weight], lr=1.0, weight_decay=decay)
        hook = self.layer.register_forward_hook(lambda module, args, y: y + (args[0] * mask) @ weight.T)
        losses = []
        for _ in range(steps):
            rows = []
            for text in texts:
                ids, start = self.ids(f"{text} {target}"), self.ids(text).shape[1]
                logits = self.model(ids).logits[0, start - 1 : -1]
                rows.append(F.cross_entropy(logits, ids[0, start:], reduction="sum") / (ids.shape[1] - start + 1))
            loss = torch.stack(rows).mean()
            losses.append(loss.item())
            if len(losses) > 1 and abs(losses[-1] - losses[-2]) <= 1e-4 and losses[-1] <= 0.02:
                break
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_([weight], 1.0)
            optimiser.step()
        hook.remove()
        self.memory = weight.detach()
        return mask, losses


def test_three_edits_equal_the_straight_loop(llama64, tiny_tokenizer):
    plain = copy.deepcopy(llama64).requires_grad_(False)
    recipe = dataclasses.replace(RECIPES["paper"], prefixes=3)
    decay = recipe.weight_decay
    memoir = Memoir.attach(
        llama64, tiny_tokenizer, MemoirConfig(layer=LAYER, k=K, tau=0.9, recipe=recipe, prefix_tokens=3)
    )
    results = memoir.edit(EDITS, progress=False)
    straight = Straight(plain, tiny_tokenizer, memoir.layer.permutation, memoir.prefixes)
    torch.testing.assert_close(memoir.layer.mu.double(), straight.mu, rtol=1e-6, atol=1e-6)
    for edit, (prompt, target) in enumerate(EDITS):
        mask, losses = straight.edit(prompt, target, recipe.steps, decay)
        assert memoir.layer.store.columns[edit].tolist() == mask.nonzero().flatten().tolist()
        assert results[edit].loss == pytest.approx(losses[-1], abs=1e-9)
        assert results[edit].steps == len(losses) == 30
    assert len(memoir.prefixes) == 3 and straight.memory.abs().max() > 0.01
    torch.testing.assert_close(memoir.layer.memory.weight.T, straight.memory, rtol=0, atol=1e-9)


def test_early_stop_waits_for_the_bar_and_for_a_settled_loss(llama64, tiny_tokenizer):
    """Steps and last loss are those of the straight loop, which is given steps enough to end early."""
    llama64.lm_head.weight.data *= 4  # else no hidden state of 32 numbers is sure of one token in 384
    plain = copy.deepcopy(llama64).requires_grad_(False)
    recipe = dataclasses.replace(RECIPES["paper"], prefixes=0, steps=200)
    memoir = Memoir.attach(llama64, tiny_tokenizer, MemoirConfig(layer=LAYER, k=K, tau=0.9, recipe=recipe))
    result = memoir.edit(*EDITS[0])
    straight = Straight(plain, tiny_tokenizer, memoir.layer.permutation, [])
    _, losses = straight.edit(*EDITS[0], 200, 1e-5)
    assert result.steps == len(losses) - 1 < 199 and result.learned
    assert losses.index(next(loss for loss in losses if loss <= 0.02)) < len(losses) - 1  # it waited until it settled
    assert result.loss == pytest.approx(losses[-1], abs=1e-9)
    torch.testing.assert_close(memoir.layer.memory.weight.T, straight.memory, rtol=0, atol=1e-9)


def test_decay_reaches_every_row_and_its_absence_none(llama64, tiny_tokenizer):
    memoir = Memoir.attach(llama64, tiny_tokenizer, MemoirConfig(layer=LAYER, k=K, tau=0.9))
    memoir.layer.memory.weight.normal_()
    start = memoir.layer.memory.weight.clone()
    decayed = dataclasses.replace(RECIPES["paper"], prefixes=0, steps=7, weight_decay=0.01)
    memoir.edit(*EDITS[0], recipe=decayed)
    others = torch.ones(48, dtype=torch.bool)
    others[memoir.layer.store.columns[0].long()] = False
    torch.testing.assert_close(memoir.layer.memory.weight[others], start[others] * 0.99**7, rtol=1e-12, atol=0)
    start = memoir.layer.memory.weight.clone()
    memoir.edit(*EDITS[0], recipe=dataclasses.replace(decayed, weight_decay=0.0))
    assert torch.equal(memoir.layer.memory.weight[others], start[others])
    assert not torch.equal(memoir.layer.memory.weight[~others], start[~others])


def test_row_losses():
    logits = torch.randn(2, 5, 7, dtype=torch.float64)
    labels = torch.tensor([[-100, -100, 3, 4, 5], [-100, 1, -100, -100, -100]])
    log = logits.log_softmax(-1)
    expected = [-(log[0, 1, 3] + log[0, 2, 4] + log[0, 3, 5]) / 4, -log[1, 0, 1] / 2]
    torch.testing.assert_close(row_losses(logits, labels), torch.stack(expected))
    assert row_losses(logits.bfloat16(), labels).dtype == torch.float32
