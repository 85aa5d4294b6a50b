"""`recipe="fast"`: the published loop's result, for every architecture and dtype, one by one and in batches."""

import collections
import copy
import dataclasses
import sys

import pytest
import torch
from torch.overrides import TorchFunctionMode

from memoir_fast import Edit, Memoir, MemoirConfig
from memoir_fast.editing import active_rows
from memoir_fast.editing.batch import Batch
from memoir_fast.editing.context import EditContext
from memoir_fast.hf.presets import PRESETS
from memoir_fast.modules import TopHash
from memoir_fast.recipe import RECIPES, Recipe

LAYER = "model.layers.1.mlp.down_proj"
SUBJECTS = ("France", "Italy", "the island", "the novel", "London", "the sky", "Greek", "a camel", "the town", "Rome")
EDITS = [
    Edit(f"The {what} of {subject} is", f"{subject[::-1]} {number}")
    for number, (what, subject) in enumerate((what, subject) for what in ("capital", "river") for subject in SUBJECTS)
]
SGD = Recipe("fast", steps=30, learning_rate=1.0, clip=1.0, settled=1e-4, prefixes=0)
ADAM = dataclasses.replace(RECIPES["fast"], prefixes=1, rewordings=0, questions=0)
PAPER = dataclasses.replace(RECIPES["paper"], weight_decay=0.0, prefixes=0)


def _attach(model, tokenizer, recipe, k=16, layer=LAYER, further=0):
    config = MemoirConfig(layer=layer, k=k, tau=0.9, recipe=recipe, prefix_tokens=3, background=20, further=further)
    return Memoir.attach(model, tokenizer, config)


def test_twenty_edits_by_sgd_equal_the_published_loop(llama64, tiny_tokenizer):
    other = copy.deepcopy(llama64)
    paper, fast = _attach(llama64, tiny_tokenizer, PAPER), _attach(other, tiny_tokenizer, SGD)
    expected, found = paper.edit(EDITS, progress=False), fast.edit(EDITS, progress=False)
    assert len(EDITS) == 20 and fast.layer.store.live == list(range(20))
    assert [one.steps for one in found] == [one.steps for one in expected]
    assert torch.equal(fast.layer.store.masks, paper.layer.store.masks)
    torch.testing.assert_close(fast.layer.memory.weight, paper.layer.memory.weight, rtol=0, atol=1e-9)
    assert paper.layer.memory.weight.abs().max() > 0.01


@pytest.mark.parametrize("routing", ["early", "paper"])
def test_several_layers_equal_the_published_loop(llama64, tiny_tokenizer, monkeypatch, routing):
    """Its rows with Adam's move replaced by SGD's, against gradients through the whole model: three layers, or two."""
    monkeypatch.setattr(active_rows, "_plain_adam", lambda slope, mean, square, step, rate: -rate * slope)
    other, first = copy.deepcopy(llama64), int(routing == "early")
    config = MemoirConfig(
        layer=f"model.layers.{first}.mlp.down_proj", further=2 - first, k=16, tau=0.9, background=20, routing=routing
    )
    rows = dataclasses.replace(SGD, optimizer="adam", learning_rate=SGD.learning_rate * (3 - first))
    paper = Memoir.attach(llama64, tiny_tokenizer, config.replace(recipe=PAPER))
    fast = Memoir.attach(other, tiny_tokenizer, config.replace(recipe=rows))
    expected, found = paper.edit(EDITS[:4], progress=False), fast.edit(EDITS[:4], progress=False)
    assert [one.steps for one in found] == [one.steps for one in expected]
    torch.testing.assert_close(fast.layer.memory.weight, paper.layer.memory.weight, rtol=0, atol=1e-9)
    assert paper.layer.memory.weight.shape[1] == 32 * (3 - first)
    for own in (one.outputs for one in (paper.layer, *paper.layer.further)):
        assert paper.layer.memory.weight[:, own].abs().max() > 0.001


@pytest.fixture
def disjoint(monkeypatch):
    """Each of the first four edits gets twelve columns of its own."""
    masks, columns = TopHash(48, 12, seed=0).hash(torch.stack([_block(edit) for edit in range(4)]))
    assert len(set(columns.flatten().tolist())) == 48
    order = {edit.prompt: number for number, edit in enumerate(EDITS[:4])}

    def hashed(self, x, marked, prompts):
        rows = [order[prompt] for prompt in prompts]
        return masks[rows].clone(), columns[rows].clone()

    monkeypatch.setattr(EditContext, "hashed", hashed)


def _block(edit):
    return torch.where(torch.arange(48) // 12 == edit, 1.0, 0.0)


@pytest.mark.parametrize(("recipe", "further"), [(SGD, 0), (ADAM, 0), (ADAM, 1)], ids=["sgd", "adam", "two layers"])
def test_a_batch_that_shares_no_column_equals_one_edit_after_another(
    llama64, tiny_tokenizer, disjoint, recipe, further
):
    other = copy.deepcopy(llama64)
    one_by_one, together = (_attach(one, tiny_tokenizer, recipe, 12, LAYER, further) for one in (llama64, other))
    expected = one_by_one.edit(EDITS[:4], progress=False)
    found = together.edit(EDITS[:4], batch=4, progress=False)
    assert [one.edit_id for one in found] == [0, 1, 2, 3] and [one.prompt for one in found] == [
        e.prompt for e in EDITS[:4]
    ]
    assert [one.steps for one in found] == [one.steps for one in expected]
    for one, same in zip(found, expected, strict=True):
        assert one.loss == pytest.approx(same.loss, abs=1e-9)
    torch.testing.assert_close(together.layer.memory.weight, one_by_one.layer.memory.weight, rtol=0, atol=1e-9)


@pytest.mark.parametrize("further", [0, 1])
def test_rows_run_by_their_length_teach_the_same(llama64, tiny_tokenizer, further, request):
    other = copy.deepcopy(llama64)
    whole, split = (_attach(one, tiny_tokenizer, RECIPES["fast"], 30, LAYER, further) for one in (llama64, other))
    expected = whole.edit(EDITS[:6], batch=3, progress=False)
    request.getfixturevalue("by_length")
    found = split.edit(EDITS[:6], batch=3, progress=False)
    assert [one.steps for one in found] == [one.steps for one in expected]
    torch.testing.assert_close([one.loss for one in found], [one.loss for one in expected], rtol=0, atol=1e-9)
    torch.testing.assert_close(split.layer.memory.weight, whole.layer.memory.weight, rtol=0, atol=1e-9)
    assert whole.layer.memory.weight.abs().max() > 0.01


@pytest.mark.parametrize(
    ("recipe", "further"), [(SGD, 0), (RECIPES["fast"], 0), (RECIPES["fast"], 1)], ids=["sgd", "adam", "two layers"]
)
def test_a_batch_that_shares_columns_is_one_joint_problem(llama64, tiny_tokenizer, recipe, further):
    """What it reports is what the finished memory gives: the cross-talk between the edits is in the loss."""
    recipe = dataclasses.replace(recipe, prefixes=0, rewordings=0, questions=0)
    memoir = _attach(llama64, tiny_tokenizer, recipe, 30, LAYER, further)
    results = memoir.edit(EDITS[:5], batch=5, progress=False)
    columns = memoir.layer.store.columns[:5].tolist()
    assert len(set(sum(columns, []))) < 5 * 30
    for edit, result in zip(EDITS, results, strict=False):
        prompt = len(tiny_tokenizer(edit.prompt).input_ids)
        ids = tiny_tokenizer(f"{edit.prompt} {edit.target}", return_tensors="pt").input_ids
        with torch.no_grad(), memoir.routed(result.edit_id):
            log = memoir.model(ids).logits[0].log_softmax(-1)
        own = -log[torch.arange(prompt - 1, ids.shape[1] - 1), ids[0, prompt:]]
        assert result.loss == pytest.approx(float(own.sum() / (len(own) + 1)), abs=1e-9)


def test_every_architecture_learns(architecture, make_model, tiny_tokenizer, untouched):
    model = make_model(architecture)
    model.get_output_embeddings().weight.data *= 16  # else no hidden state of 32 numbers is sure of one token in 384
    before = untouched(model)
    layer = PRESETS[architecture].path.format(block=1)
    recipe = dataclasses.replace(
        RECIPES["fast"],
        prefixes=0,
        rewordings=0,
        questions=0,
        steps=300,
        learning_rate=0.05,
        bar=0.2,
        enough=None,
        boundary=False,
    )
    memoir = _attach(model, tiny_tokenizer, recipe, 32 if architecture in ("gpt2", "gptj") else 24, layer)
    attached = untouched(model)
    result = memoir.edit("The capital of France is", "Lyon")
    assert result.learned and result.loss <= recipe.bar and 1 < result.steps < 200
    ids = tiny_tokenizer("The capital of France is", return_tensors="pt").input_ids
    wanted = tiny_tokenizer("The capital of France is Lyon").input_ids[ids.shape[1] :]
    model.generation_config.eos_token_id = None
    output = model.generate(ids, max_new_tokens=len(wanted), do_sample=False)
    assert output[0, ids.shape[1] :].tolist() == wanted
    assert memoir.last_routes == [(0, 1.0)]
    assert untouched(model) == attached
    memoir.detach()
    assert untouched(model) == before


@pytest.mark.parametrize("recipe", ["paper", "fast"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_learns(tiny_llama, tiny_tokenizer, dtype, recipe):
    model = tiny_llama.to(dtype)
    settings = dataclasses.replace(RECIPES[recipe], prefixes=1)
    memoir = _attach(model, tiny_tokenizer, settings, 24)
    start = memoir.edit("The capital of France is", "Lyon", recipe=dataclasses.replace(settings, steps=1))
    assert memoir.layer.memory.weight.dtype == dtype
    result = memoir.edit("The capital of France is", "Lyon")
    assert result.loss < start.loss / 2 and result.replaced
    assert memoir.layer.memory.weight.isfinite().all() and memoir.layer.memory.weight.any()


@pytest.mark.parametrize("recipe", [SGD, RECIPES["fast"]], ids=["sgd", "adam"])
def test_an_edit_that_cannot_be_learned_says_so(tiny_llama, tiny_tokenizer, recipe):
    settings = dataclasses.replace(recipe, prefixes=0, rewordings=0, questions=0, steps=1, bar=1e-6)
    results = _attach(tiny_llama, tiny_tokenizer, settings).edit(EDITS[:3], batch=2, progress=False)
    assert [one.learned for one in results] == [False] * 3 and all(one.loss > 1e-6 for one in results)
    assert [one.steps for one in results] == [1, 1, 1]


def test_only_the_edits_own_rows_move(tiny_llama, tiny_tokenizer):
    memoir = _attach(
        tiny_llama, tiny_tokenizer, dataclasses.replace(RECIPES["fast"], prefixes=1, rewordings=0, questions=0)
    )
    memoir.layer.memory.weight.normal_(std=0.01)
    start = memoir.layer.memory.weight.clone()
    memoir.edit(EDITS[:2], batch=2, progress=False)
    owned = torch.zeros(48, dtype=torch.bool)
    owned[memoir.layer.store.columns[:2].flatten().long()] = True
    assert torch.equal(memoir.layer.memory.weight[~owned], start[~owned])
    assert (memoir.layer.memory.weight[owned] != start[owned]).any()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("recipe", ["paper", "fast"])
def test_an_exception_while_learning_leaves_no_patch_behind(tiny_llama, tiny_tokenizer, untouched, recipe, error):
    memoir = _attach(tiny_llama, tiny_tokenizer, dataclasses.replace(RECIPES[recipe], prefixes=1))
    memoir.edit(EDITS[0])
    before, ids = untouched(tiny_llama), tiny_tokenizer("The sky", return_tensors="pt").input_ids
    with torch.no_grad():
        logits = tiny_llama(ids).logits
    calls = []

    def stop(*_):
        calls.append(1)
        if len(calls) == 4:
            raise error("stop")

    hook = tiny_llama.lm_head.register_forward_hook(stop)
    with pytest.raises(error, match="stop"):
        memoir.edit(EDITS[1])
    hook.remove()
    assert untouched(tiny_llama) == before and not memoir.layer._replaced
    with torch.no_grad():
        assert torch.equal(tiny_llama(ids).logits, logits)
    assert memoir.layer.store.live == [0]


class Waiting(TorchFunctionMode):
    """Counts what the package calls that would wait for a device: values that are read, and numbers that are sent."""

    READS = ("tolist", "item", "__bool__", "__int__", "__float__", "nonzero", "unique", "bincount", "masked_select")

    def __init__(self):
        super().__init__()
        self.counted = collections.Counter()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name, frame = getattr(func, "__name__", ""), sys._getframe(1)
        index = args[1] if name in ("__getitem__", "__setitem__") else ()
        marks = [one for one in (index if isinstance(index, tuple) else (index,)) if isinstance(one, torch.Tensor)]
        sends = func is torch.tensor and kwargs and kwargs.get("device") is not None
        if name in self.READS or sends or any(one.dtype == torch.bool for one in marks):
            while frame.f_code.co_filename == __file__:
                frame = frame.f_back
            if "memoir_fast/editing" in frame.f_code.co_filename:
                self.counted[f"{name} in {frame.f_code.co_name}"] += 1
        return func(*args, **(kwargs or {}))


def test_a_step_waits_for_a_device_once(tiny_llama, tiny_tokenizer, monkeypatch):
    """For its losses. The form of Adam is a device's; two edits learn together, each with its quiet rows."""
    monkeypatch.setattr(active_rows, "_plain_adam", active_rows._fused_adam)
    counted = []
    for steps in (4, 9):
        recipe = dataclasses.replace(RECIPES["fast"], prefixes=0, rewordings=1, questions=0, steps=steps, bar=0.0)
        memoir = _attach(copy.deepcopy(tiny_llama), tiny_tokenizer, recipe)
        with Waiting() as waiting:
            results = memoir.edit(EDITS[:2], batch=2, progress=False)
        assert [one.steps for one in results] == [steps, steps]
        counted.append(waiting.counted)
    assert dict(counted[1] - counted[0]) == {"tolist in _step": 5}


@pytest.mark.parametrize("batch", [1, 2])
def test_no_loss_is_looked_at_twice(tiny_llama, tiny_tokenizer, monkeypatch, batch):
    """Once before each step, and once behind the last: a pass through the upper layers each."""
    passes = []
    losses = Batch.losses
    monkeypatch.setattr(Batch, "losses", lambda self, *args: passes.append(1) or losses(self, *args))
    recipe = dataclasses.replace(RECIPES["fast"], prefixes=0, rewordings=0, questions=0, steps=3, bar=0.0)
    results = _attach(tiny_llama, tiny_tokenizer, recipe).edit(EDITS[:batch], batch=batch, progress=False)
    assert [one.steps for one in results] == [3] * batch and len(passes) == 4
