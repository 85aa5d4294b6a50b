"""A memory of several layers: all add what the first one decided, as if it were added by hand to the unedited model."""

import contextlib
import copy
import dataclasses
import random
from types import SimpleNamespace

import pytest
import torch
from cache_name import CACHE
from transformers import LogitsProcessor, LogitsProcessorList

from memoir_fast import RECIPES, Edit, Memoir, MemoirConfig
from memoir_fast.errors import MemoirError
from memoir_fast.modules import compiled

LAYERS = [f"model.layers.{block}.mlp.down_proj" for block in range(3)]
FACTS = ("The capital of France is", "Who wrote the play? The author", "Which animal lives in the desert?")
UNMATCHED = "In which country is the mountain? The river runs"
NEW = 6


@pytest.fixture(params=["paper", "early"])
def several(request, tiny_llama, tiny_tokenizer):
    """Three layers, or, behind the block where routing codes are made, two; random numbers where the edits read."""
    plain = copy.deepcopy(tiny_llama)
    first = 0 if request.param == "paper" else 1
    recipe = dataclasses.replace(RECIPES["paper"], steps=1, prefixes=0)
    config = MemoirConfig(
        routing=request.param, layer=LAYERS[first], further=2 - first, k=20, tau=0.7, page_edits=2, recipe=recipe
    )
    memoir = Memoir.attach(tiny_llama, tiny_tokenizer, config)
    memoir.edit([(fact, "x") for fact in FACTS], progress=False)
    assert memoir.edits == {number: Edit(fact, "x") for number, fact in enumerate(FACTS)}
    assert memoir.layer.memory.numbers == [0, 1]
    for page in memoir.layer.memory.numbers:
        memoir.layer.memory.page(page).normal_()
    for model in (tiny_llama, plain):
        model.generation_config.eos_token_id = None
    return SimpleNamespace(
        memoir=memoir, model=tiny_llama, plain=plain, layers=LAYERS[first:], tokenizer=tiny_tokenizer
    )


@contextlib.contextmanager
def by_hand(several, routes):
    """Within the block, the unedited model's rows read the memory, as it is now, along these routes."""
    layer, handles = several.memoir.layer, []
    weight, start = layer.memory.weight.clone(), 0
    rows = layer.store.rows(torch.tensor(routes).int()).long()
    for name in several.layers:
        module = several.plain.get_submodule(name)

        def hook(module, args, y, own=slice(start, start + module.out_features)):
            (x,) = args
            each = len(x) // len(routes)  # beams of one prompt are rows one behind another
            for row, x_row in enumerate(x):
                if routes[row // each] >= 0:
                    read = rows[row // each]
                    y[row] += x_row[:, read % layer.in_features] @ weight[read, own]
            return y

        start += module.out_features
        handles.append(module.register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def batch(several, texts):
    several.tokenizer.padding_side = "left"
    return several.tokenizer(list(texts), return_tensors="pt", padding=True)


class Meanwhile(LogitsProcessor):
    """Changes the memory when the second token is chosen."""

    def __init__(self, change):
        self._change, self._seen = change, 0

    def __call__(self, ids, scores):
        self._seen += 1
        if self._seen == 2:
            self._change()
        return scores


def test_random_batches(several):
    """Beams, caches of both kinds and none, and edits that come and go beside a generation."""
    chance, memoir = random.Random(0), several.memoir
    ways = [{}, {"num_beams": 2}, {"num_beams": 3}, {"cache_implementation": "static"}, {"use_cache": False}]

    def change():
        live = memoir.layer.store.live
        with contextlib.ExitStack() as stack:
            stack.enter_context(memoir.layer.changing(page=0, rows=True))
            memoir.layer.memory.page(0).normal_()
            if len(live) > 1 and chance.random() < 0.5:
                memoir.edits.delete(chance.choice(live))

    for _ in range(20):
        texts = [chance.choice([*FACTS, UNMATCHED]) for _ in range(chance.randint(1, 4))]
        asked, way = batch(several, texts), chance.choice(ways)
        settings = {"max_new_tokens": NEW, "do_sample": False, **way}
        ids = {edit.prompt: edit_id for edit_id, edit in memoir.edits.items()}
        routes = [ids.get(text, -1) for text in texts]
        with by_hand(several, routes):
            expected = several.plain.generate(**asked, **settings)
        beside = LogitsProcessorList([Meanwhile(change)]) if chance.random() < 0.4 else None
        found = several.model.generate(**asked, **settings, logits_processor=beside)
        assert [one.edit_id for one in memoir.last_routes[:: way.get("num_beams", 1)]] == routes
        assert torch.equal(found, expected), (texts, way, beside)
    assert not memoir.layer.views._running and not memoir.layer.memory._copies


def test_each_layer_adds_and_unmatched_rows_keep_their_bits(several):
    asked, outputs = batch(several, (FACTS[1], UNMATCHED)), []
    with torch.no_grad():
        plain = several.plain(**asked).logits
        for outputs_of in (one.outputs for one in (several.memoir.layer, *several.memoir.layer.further)):
            weight = several.memoir.layer.memory.weight
            kept = weight.clone()
            outputs.append(several.model(**asked).logits)
            weight[:, outputs_of] = 0
            without = several.model(**asked).logits
            assert not torch.allclose(without[0], outputs[0][0], atol=1e-3)
            weight.copy_(kept)
        with several.memoir.disabled():
            assert torch.equal(several.model(**asked).logits, plain)
    assert all(torch.equal(one[1], plain[1]) for one in outputs)


@pytest.mark.parametrize("step", [False, True], ids=["prefill", "decode step"])
def test_an_edit_that_goes_between_two_layers_goes_after_the_pass(several, step):
    """The layers behind it read what the first one read, also where a plain pass is no part of a generation."""
    memoir, given = several.memoir, dict(batch(several, (FACTS[0],)))

    def run():
        with torch.no_grad():
            output = several.model(**given)
            if not step:
                return output.logits
            token = torch.tensor([[9]])
            handle = several.model.model.layers[2].register_forward_pre_hook(meanwhile)
            try:
                return several.model(token, **{CACHE: output[CACHE]}).logits
            finally:
                handle.remove()

    def meanwhile(*_):
        if deleting and 0 in memoir.edits:
            memoir.delete(0)

    deleting = False
    expected = run()
    deleting = True
    handle = None if step else several.model.model.layers[2].register_forward_pre_hook(meanwhile)
    assert torch.equal(run(), expected) and 0 not in memoir.edits
    if handle is not None:
        handle.remove()
    assert not torch.equal(run(), expected)
    assert not memoir.layer.views._running


def test_several_sequences_in_a_row(several):
    rows = [several.tokenizer(text, return_tensors="pt").input_ids[0] for text in (FACTS[2], UNMATCHED, FACTS[0])]
    given = {
        "input_ids": torch.cat(rows)[None],
        "position_ids": torch.cat([torch.arange(len(row)) for row in rows])[None],
        "use_cache": False,
    }
    with torch.no_grad():
        found = several.model(**given).logits
        expected = torch.cat([several.model(row[None]).logits for row in rows], dim=1)
    torch.testing.assert_close(found, expected)
    assert len(several.memoir.last_routes) == 1 and several.memoir.last_routes[0].edit_id == 0


def test_gradients_reach_the_input_through_all_layers(several):
    asked = batch(several, (FACTS[1],))

    def gradient(model):
        embedded = model.get_input_embeddings()(asked.input_ids).detach().requires_grad_()
        logits = model(inputs_embeds=embedded, attention_mask=asked.attention_mask, use_cache=False).logits
        return torch.autograd.grad(logits.square().mean(), embedded)[0]

    with several.memoir.routed(1):
        found = gradient(several.model)
    with by_hand(several, [1]):
        torch.testing.assert_close(found, gradient(several.plain), rtol=1e-3, atol=1e-6)


def test_a_layer_that_is_reached_without_the_first_is_refused(several):
    further = several.memoir.layer.further[-1]
    with pytest.raises(MemoirError, match="routes are made by the whole model"):
        further(torch.zeros(5, 2, further.in_features))
    blocks = several.model.model.layers
    skipped = int(several.layers[0].split(".")[2])
    blocks[skipped].forward = lambda hidden, *_, **__: hidden
    with pytest.raises(MemoirError, match="reached before the edited layer"):
        several.model(**batch(several, FACTS))
    del blocks[skipped].forward
    assert not several.memoir.layer.views._running


def test_it_is_not_compiled(several, monkeypatch):
    monkeypatch.setattr(compiled, "tracing", lambda: True)
    for layer in (several.memoir.layer, *several.memoir.layer.further):
        with pytest.raises(MemoirError, match="cannot be compiled"):
            layer(torch.zeros(1, 2, layer.in_features))


def test_the_edited_and_the_plain_model_have_one_state(several):
    memoir, plain = several.memoir, several.plain
    assert {name: one.shape for name, one in several.model.state_dict().items()} == {
        name: one.shape for name, one in plain.state_dict().items()
    }
    several.model.load_state_dict(plain.state_dict())
    twin = copy.deepcopy(several.model)
    asked = batch(several, FACTS)
    with torch.no_grad():
        edited = several.model(**asked).logits
        memoir.layer.memory.weight.zero_()
        assert torch.equal(twin(**asked).logits, edited), "its memory is its own"
        assert not torch.equal(several.model(**asked).logits, edited)
    assert all(one is plain_one for one, plain_one in zip(
        (memoir.detach().get_submodule(name) for name in several.layers),
        (one.base for one in (memoir.layer, *memoir.layer.further)),
        strict=True,
    ))  # fmt: skip
