"""Gradient checkpointing on a model with a memory: blocks that are run again read what they read in their own pass."""

import copy
import dataclasses

import pytest
import torch

from memoir_fast import RECIPES, Memoir, MemoirConfig
from memoir_fast.errors import MemoirError
from memoir_fast.hf.replays import Replays, in_backward

PROMPTS = ["The capital of France is", "Who wrote the play? The author", "Which animal lives in the desert?"]
QUICK = dataclasses.replace(RECIPES["fast"], prefixes=0, rewordings=0, questions=0, steps=1)
EARLY = {"routing": "early", "tau": 0.9, "layer": "model.layers.1.mlp.down_proj"}
KINDS = {"early": EARLY, "paper": {**EARLY, "routing": "paper"}, "two layers": {**EARLY, "further": 1}}


@pytest.fixture(params=sorted(KINDS))
def memoir(request, tiny_llama, tiny_tokenizer):
    memoir = Memoir.attach(tiny_llama, tiny_tokenizer, MemoirConfig(recipe=QUICK, k=16, **KINDS[request.param]))
    memoir.edit([(prompt, "Lyon") for prompt in PROMPTS[:2]], progress=False)
    for page in memoir.layer.memory.numbers:
        memoir.layer.memory.page(page).normal_()
    return memoir


early = pytest.mark.parametrize("memoir", ["early"], indirect=True)


def _loss(memoir, *texts):
    given = memoir.tokenizer(list(texts), return_tensors="pt", padding=True)
    given = {name: given[name] for name in ("input_ids", "attention_mask")}
    return memoir.model(**given, labels=given["input_ids"], use_cache=False).loss


def _checkpointing(memoir, reentrant=None):
    """None: without it."""
    memoir.model.gradient_checkpointing_disable()
    if reentrant is not None:
        memoir.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    memoir.model.train()


def _gradients(memoir, loss):
    memoir.model.zero_grad()
    loss.backward()
    return [one.grad.clone() for one in memoir.model.parameters() if one.grad is not None]


def _passes(memoir):
    """Losses of padded batches: one taken for prompts, one of prompts and what is said, one that follows nothing."""
    yield _loss(memoir, PROMPTS[0], PROMPTS[2])
    with memoir.prompts([len(memoir.tokenizer(one).input_ids) for one in PROMPTS[:2]]):
        yield _loss(memoir, *(f"{one} red and blue" for one in PROMPTS[:2]))
    yield _loss(memoir, PROMPTS[2], PROMPTS[1])
    with memoir.routed(-1):
        yield _loss(memoir, *PROMPTS)


@pytest.mark.parametrize("reentrant", [False, True])
def test_one_backward_pass_of_several_passes(memoir, reentrant):
    memoir.model.enable_input_require_grads()
    _checkpointing(memoir)
    expected = _gradients(memoir, sum(_passes(memoir)))
    _checkpointing(memoir, reentrant)
    found = _gradients(memoir, sum(_passes(memoir)))
    assert expected and all(map(torch.equal, found, expected))
    for loss in _passes(memoir):
        _gradients(memoir, loss)


@early
def test_two_passes_over_the_same_inputs_are_told_apart_or_refused(memoir):
    def losses():
        for route in (0, -1):
            with memoir.routed(route):
                yield _loss(memoir, PROMPTS[0])

    _checkpointing(memoir)
    expected = [_gradients(memoir, loss) for loss in losses()]
    _checkpointing(memoir, False)
    with pytest.raises(MemoirError, match="two passes over the same inputs read the memory differently"):
        _gradients(memoir, sum(losses()))
    memoir.model.generate(torch.tensor([[5, 6]]), max_new_tokens=2)
    _checkpointing(memoir, False)
    again = copy.deepcopy(memoir)
    for one in (memoir, again):
        one._router.replays._reads.clear()
    with torch.no_grad(), memoir.disabled():
        _loss(memoir, PROMPTS[0])  # as that of a reference model, which has no backward pass
    for loss, gradients in zip(losses(), expected, strict=True):
        assert all(map(torch.equal, _gradients(memoir, loss), gradients))
    assert not again._router.replays._reads


@early
def test_a_change_between_a_pass_and_its_backward_pass_is_refused(memoir):
    _checkpointing(memoir, False)
    for change in (lambda: memoir.edit(PROMPTS[2], "Rome"), lambda: memoir.delete(1)):
        loss = _loss(memoir, PROMPTS[0])
        change()
        with pytest.raises(MemoirError, match="the memory was changed between a pass and its backward pass"):
            loss.backward()
        _loss(memoir, PROMPTS[0]).backward()


@early
@pytest.mark.parametrize("grad", [torch.enable_grad, torch.no_grad])
def test_what_is_not_run_again_is_not_kept(memoir, grad):
    _checkpointing(memoir)
    with grad():
        _loss(memoir, PROMPTS[0])
    assert not memoir._router.replays._reads


def test_a_pass_that_is_not_known_is_refused():
    replays, x = Replays(), torch.randn(2, 3, 8)
    for other in (torch.randn(2, 3, 8), torch.randn(2, 4, 8)):
        with pytest.raises(MemoirError, match="its forward pass is not known"):
            replays.read(x, (0, 0))
        replays.note(other, None, (0, 0))
    with pytest.raises(MemoirError, match="its forward pass is not known"):
        replays.read(x, (0, 0))
    replays.note(x, None, (0, 0))
    assert replays.read(x * (1 + 1e-6), (0, 0)) is None and not in_backward()


@early
def test_a_torch_that_does_not_tell_of_backward_passes(memoir, monkeypatch):
    """Blocks that may be run again are refused; whatever asks for no gradients is as ever."""
    monkeypatch.delattr(torch._C, "_current_graph_task_id")
    _checkpointing(memoir, True)  # torch's other kind asks for the same
    with pytest.raises(MemoirError, match="does not tell whether a backward pass runs it again"):
        _loss(memoir, PROMPTS[0]).backward()
    x = torch.zeros(1, 2, memoir.layer.in_features)
    with torch.no_grad():
        assert memoir.layer(x).shape == (1, 2, memoir.layer.out_features)
