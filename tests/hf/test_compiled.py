"""A whole model with a memory under torch.compile: one graph, compiled once, and what every other pass answers."""

import copy
import dataclasses
from types import SimpleNamespace

import pytest
import torch
from cache_name import CACHE
from torch._dynamo.utils import counters
from transformers import CompileConfig, DynamicCache, GenerationConfig, StaticCache

from memoir_fast import Edit, Memoir, MemoirConfig
from memoir_fast.errors import MemoirError, PackedBatchError, UnsupportedModelError
from memoir_fast.hf.cache import remembered
from memoir_fast.recipe import RECIPES

FACT, OTHER = "The capital of France is", "Which animal lives in the desert of"
LAYER = "model.layers.1.mlp.down_proj"
QUICK = dataclasses.replace(RECIPES["fast"], steps=2)
BLOCK = 10  # tokens of a padded prompt


def _taught(model, tokenizer, **settings):
    memoir = Memoir.attach(model, tokenizer, MemoirConfig(layer=LAYER, k=20, check=False, **settings))
    memoir.edit(FACT, "Lyon", recipe=QUICK)

    def batch(*texts):
        return dict(tokenizer(list(texts), return_tensors="pt", padding="max_length", max_length=BLOCK))

    return SimpleNamespace(model=model, memoir=memoir, tokenizer=tokenizer, batch=batch)


@pytest.fixture
def taught(tiny_llama, tiny_tokenizer):
    torch._dynamo.reset()
    yield _taught(tiny_llama, tiny_tokenizer, page_edits=8)
    torch._dynamo.reset()


@pytest.fixture
def whole(taught, request):
    """The model, compiled for the counting of graphs: a graph break raises."""
    counters.clear()
    taught.compiled = torch.compile(taught.model, fullgraph=True, backend=getattr(request, "param", "eager"))
    taught.graphs = lambda: counters["stats"]["unique_graphs"]
    return taught


def _routes(one):
    return [route.edit_id for route in one.memoir.last_routes]


@torch.no_grad()
def _same(one, *texts):
    """The edits that the rows follow, which a compiled pass and another agree on, as on every number."""
    given = one.batch(*texts)
    expected = one.model(**given, use_cache=False).logits
    last = one.memoir.last_routes
    torch.testing.assert_close(one.compiled(**given, use_cache=False).logits, expected)
    assert one.memoir.last_routes == last
    return _routes(one)


@torch.no_grad()
def _spoken(model, given, cache, new=4):
    """Greedy tokens behind a batch of prompts, by a prefill and decode steps that go on with its cache."""
    ids, mask, said = given["input_ids"], given["attention_mask"], []
    for _ in range(new):
        ids = model(input_ids=ids, attention_mask=mask, **{CACHE: cache}).logits[:, -1:].argmax(dim=-1)
        mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
        said.append(ids)
    return torch.cat(said, dim=1).tolist()


def _static(one):
    return StaticCache(config=one.model.config, max_cache_len=24)


functional = pytest.mark.parametrize("whole", ["aot_eager"], indirect=True)  # operations in place are taken apart


@functional
@pytest.mark.slow
def test_it_is_compiled_once_while_edits_pages_and_requests_come(whole):
    given = whole.batch(FACT, OTHER)
    assert _same(whole, FACT, OTHER) == [0, -1] and whole.graphs() == 1
    first = _spoken(whole.compiled, given, _static(whole))
    assert first == _spoken(whole.model, given, _static(whole)) and whole.graphs() == 3
    with torch._dynamo.config.patch(error_on_recompile=True):
        for number in range(50):  # and four requests each, in two passes: 200
            prompt = f"The river {number} of"
            edit = whole.memoir.edit(prompt, "red", recipe=QUICK).edit_id
            assert _same(whole, prompt, OTHER) == [edit, -1]
            assert _same(whole, OTHER, FACT) == [-1, 0]
            if number % 10 == 9:
                mixed = whole.batch(FACT, prompt)
                said = _spoken(whole.compiled, mixed, _static(whole))
                assert said == _spoken(whole.model, mixed, _static(whole)) and _routes(whole) == [0, edit]
        whole.memoir.delete(0)
        assert _same(whole, FACT, OTHER) == [-1, -1]
    assert whole.graphs() == 3 and not counters["graph_break"] and whole.memoir.layer.memory.pages > 4
    assert not whole.memoir.layer.views._running, "a pass that has ended still holds on to the memory"


@pytest.mark.slow
def test_overrides_and_later_changes_reach_a_compiled_pass(whole):
    given, memoir = whole.batch(FACT, OTHER), whole.memoir
    with memoir.disabled():
        assert _same(whole, FACT, OTHER) == [-1, -1]
    with torch._dynamo.config.patch(error_on_recompile=True):
        with memoir.routed([-1, 0]):
            assert _same(whole, FACT, OTHER) == [-1, 0]
        with memoir.prompts([2, 3]):
            _same(whole, FACT, OTHER)
            assert memoir.last_routes[0].overlap < 1
        edit = memoir.edit(Edit(OTHER, "camel", bank="zoo"), recipe=QUICK).edit_id
        assert _same(whole, FACT, OTHER) == [0, -1]
        with memoir.banks(["", "zoo"]):
            assert _same(whole, FACT, OTHER) == [0, edit]
    cache, other = _static(whole), _static(whole)
    for model, one in ((whole.compiled, cache), (whole.model, other)):
        _spoken(model, given, one, new=2)
        assert memoir.followed(one) == [0, -1]
    memoir.delete(0)
    step = {"input_ids": torch.tensor([[9], [9]]), "attention_mask": torch.ones(2, BLOCK + 2, dtype=torch.int64)}
    with torch.no_grad():
        said = whole.compiled(**step, **{CACHE: cache}).logits
        torch.testing.assert_close(said, whole.model(**step, **{CACHE: other}).logits)
    assert memoir.followed(cache) == memoir.followed(other) == [-1, -1]
    for one in (cache, other):
        state = remembered(one)
        assert state.length == BLOCK + 2
        assert torch.equal(state.count.flatten(), given["attention_mask"].sum(dim=1) + 2.0)


def test_a_cache_of_a_compiled_prefill_moves_its_routes(whole):
    given = whole.batch(FACT, OTHER)
    with torch.no_grad():
        made = whole.compiled(**given)[CACHE]  # which the compiled pass makes itself
    kind = type(made)
    assert kind is DynamicCache and whole.memoir.followed(made) == [0, -1]
    other = copy.deepcopy(made)
    made.reorder_cache(torch.tensor([1, 0]))
    assert whole.memoir.followed(made) == [-1, 0] and whole.memoir.followed(other) == [0, -1]
    other.batch_repeat_interleave(2)
    assert whole.memoir.followed(other) == [0, 0, -1, -1]
    made.crop(-3)
    assert remembered(made).length == BLOCK - 3 == made.get_seq_length()
    static = _static(whole)
    _spoken(whole.compiled, given, static, new=1)
    static.reset()
    assert remembered(static) is None and whole.memoir.followed(static) == []
    assert _spoken(whole.compiled, whole.batch(OTHER, FACT), static, new=1) and _routes(whole) == [-1, 0]


@functional
def test_gradients_are_those_of_any_other_pass(whole):
    given = whole.batch(FACT, OTHER)
    weights = [whole.model.model.embed_tokens.weight, whole.memoir.layer.base.weight]
    found = []
    for model in (whole.model, whole.compiled):
        logits = model(**given, use_cache=False).logits
        found.append((logits, *torch.autograd.grad(logits[:, -1].logsumexp(dim=-1).sum(), weights)))
    torch.testing.assert_close(found[1], found[0])
    logits = whole.compiled(**given, use_cache=False).logits
    whole.memoir.edit(OTHER, "camel", recipe=QUICK)
    with pytest.raises(MemoirError, match="changed between a compiled pass and its backward pass"):
        logits.sum().backward()


def test_what_cannot_be_followed_is_refused_when_a_compiled_pass_runs(whole, tiny_tokenizer):
    with pytest.raises(UnsupportedModelError, match="attach it to the model first, then compile"):
        Memoir.attach(whole.compiled, tiny_tokenizer)
    given = {"input_ids": torch.full((1, 8), 5), "use_cache": False}
    with torch.no_grad():
        mask = torch.ones(1, 8)
        whole.compiled(**given, position_ids=torch.arange(8)[None], attention_mask=mask)
        with pytest.raises(PackedBatchError, match="position_ids start again within a row"):
            whole.compiled(**given, position_ids=torch.arange(8)[None] % 4, attention_mask=mask)
        with whole.memoir.disabled():
            whole.compiled(**given, position_ids=torch.arange(8)[None] % 4, attention_mask=mask)


@functional
def test_a_packed_batch_is_routed_as_in_any_other_pass(whole):
    texts = [whole.tokenizer(text).input_ids for text in (OTHER, FACT)]
    given = {"input_ids": torch.tensor([sum(texts, [])]), "use_cache": False}
    given["position_ids"] = torch.cat([torch.arange(len(ids)) for ids in texts])[None]
    expected = whole.model(**given).logits
    assert _routes(whole) == [-1, 0]
    found = whole.compiled(**given).logits
    assert _routes(whole) == [-1, 0]
    torch.testing.assert_close(found, expected)
    weight = whole.memoir.layer.base.weight
    ours, theirs = (torch.autograd.grad(one.logsumexp(dim=-1).sum(), weight)[0] for one in (found, expected))
    torch.testing.assert_close(ours, theirs)


def test_a_cache_of_another_memory_is_refused(taught):
    cache = _static(taught)
    _spoken(taught.model, taught.batch(FACT, OTHER), cache, new=1)
    taught.memoir.detach()
    _taught(taught.model, taught.tokenizer)
    compiled = torch.compile(taught.model, fullgraph=True, backend="eager")
    with pytest.raises(MemoirError, match="filled under a memory that is gone"):
        _spoken(compiled, taught.batch(FACT, OTHER), cache, new=1)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["forward", "module"])
def test_generate_and_learning_go_through_a_model_compiled_in_place(taught, how):
    given = taught.batch(FACT, OTHER)
    settings = {"max_new_tokens": 4, "do_sample": False, "cache_implementation": "static", "disable_compile": True}
    plain = copy.deepcopy(taught.memoir)
    if how == "forward":
        taught.model.forward = torch.compile(taught.model.forward, fullgraph=True, backend="eager")
    else:
        taught.model.compile(fullgraph=True, backend="eager")
    counters.clear()
    for prompt in ("Who wrote the play? The author", "Who wrote the novel? The author"):
        for one in (taught.memoir, plain):
            one.edit(prompt, "Rome", recipe=QUICK)
        assert torch.equal(taught.model.generate(**given, **settings), plain.model.generate(**given, **settings))
        assert taught.memoir.last_routes == plain.last_routes
        assert torch.equal(taught.memoir.layer.memory.weight, plain.layer.memory.weight)
    graphs = counters["stats"]["unique_graphs"]
    assert taught.memoir.faded() == plain.faded()
    for one in (taught.memoir, plain):
        one.edit("The river of", "red", recipe=dataclasses.replace(RECIPES["paper"], steps=1))
    assert counters["stats"]["unique_graphs"] == graphs > 0
    if how == "forward":
        beams = {**settings, "num_beams": 2}
        assert torch.equal(taught.model.generate(**given, **beams), plain.model.generate(**given, **beams))
    assert not counters["graph_break"]
    assert torch._dynamo.eval_frame._stance.stance == "default"


@pytest.mark.parametrize("part", ["blocks", "decoder"])
def test_parts_of_a_model_may_be_compiled(taught, part):
    plain = copy.deepcopy(taught.memoir)
    if part == "blocks":
        for block in taught.model.model.layers:
            block.compile(fullgraph=True, backend="aot_eager")
    else:
        taught.model.model.forward = torch.compile(taught.model.model.forward, fullgraph=True, backend="aot_eager")
    counters.clear()
    graphs = []
    for routes in ([0, -1], [0, 1]):
        given = taught.batch(FACT, OTHER)
        if part == "blocks":
            assert _spoken(taught.model, given, _static(taught), 3) == _spoken(plain.model, given, _static(taught), 3)
        else:
            logits = [one.model(**given, use_cache=False).logits for one in (taught, plain)]
            torch.testing.assert_close(*logits)
        assert _routes(taught) == routes
        graphs.append(counters["stats"]["unique_graphs"])
        for one in (taught.memoir, plain):
            one.edit(OTHER, "camel", recipe=QUICK)
        assert torch.equal(taught.memoir.layer.memory.weight, plain.layer.memory.weight)
    if part == "decoder":
        logits = [one.model(**given, use_cache=False).logits for one in (taught, plain)]
        for each in logits:
            each.logsumexp(dim=-1).sum().backward()
        torch.testing.assert_close(*(one.model.embed_tokens.weight.grad for one in (taught.model, plain.model)))
    assert graphs[0] == graphs[1] > 0 and not counters["graph_break"]


def test_generate_compiles_by_itself_with_a_static_cache(taught):
    given = {**taught.batch(FACT, OTHER), "max_new_tokens": 5, "do_sample": False}
    expected = taught.model.generate(**given)
    config = CompileConfig(fullgraph=True, backend="aot_eager", mode=None)
    config._compile_all_devices = True
    counters.clear()
    for _ in range(2):
        found = taught.model.generate(**given, cache_implementation="static", compile_config=config)
        assert torch.equal(found, expected) and _routes(taught) == [0, -1]
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.slow
def test_masks_route_a_compiled_pass_as_any_other(tiny_llama, tiny_tokenizer):
    torch._dynamo.reset()
    one = _taught(tiny_llama, tiny_tokenizer, routing="paper", tau=0.95)
    one.compiled = torch.compile(one.model, fullgraph=True, backend="eager")
    assert _same(one, FACT, OTHER) == [0, -1]
    given = one.batch(FACT, OTHER)
    assert _spoken(one.compiled, given, _static(one)) == _spoken(one.model, given, _static(one))
    torch._dynamo.reset()


@pytest.mark.parametrize("strict", [False, True])
@torch.no_grad()
def test_an_export_is_refused(taught, strict):
    given = taught.batch(FACT, OTHER)
    expected = taught.model(**given, use_cache=False).logits
    with pytest.raises(Exception, match="a model with a memory cannot be exported: its graph would hold") as refusal:
        torch.export.export(taught.model, (), {**given, "use_cache": False}, strict=strict)
    assert strict or isinstance(refusal.value, MemoirError)
    torch.testing.assert_close(taught.model(**given, use_cache=False).logits, expected)
    plain = taught.memoir.detach()
    exported = torch.export.export(plain, (), {**given, "use_cache": False}, strict=strict).module()
    torch.testing.assert_close(exported(**given, use_cache=False).logits, plain(**given, use_cache=False).logits)


@pytest.mark.parametrize("strict", [False, True])
@torch.no_grad()
def test_transformers_own_exporter_of_decode_steps_is_refused(taught, strict):
    from transformers.integrations.executorch import TorchExportableModuleForDecoderOnlyLM

    settings = {"use_cache": True, "cache_implementation": "static", "max_length": 16}
    taught.model.generation_config = GenerationConfig(**settings, cache_config={"batch_size": 1, "max_cache_len": 16})
    exporter = TorchExportableModuleForDecoderOnlyLM(taught.model, batch_size=1, max_cache_len=16)
    with pytest.raises(Exception, match="a model with a memory cannot be exported"):
        exporter.export(input_ids=torch.tensor([[5]]), cache_position=torch.tensor([0]), strict=strict)


def test_what_a_captured_graph_reads_stays_where_it_is(tiny_llama, tiny_tokenizer):
    one = _taught(tiny_llama, tiny_tokenizer, page_edits=4, max_pages=8, max_edits=64)
    layer = one.memoir.layer

    def places():
        return {name: tensor.data_ptr() for name, tensor in layer.named_buffers()}

    before = places()
    for number in range(12):
        one.memoir.edit(f"The river {number} of", "red", recipe=QUICK)
    one.memoir.delete(3)
    one.memoir.edit(FACT, "Rome", recipe=QUICK)
    assert layer.memory.pages > 3 and places() == before and len(before) > 5


def test_no_cuda_graph_may_hold_what_routes():
    for name in ("route_pass", "tell_router"):
        assert torch.Tag.cudagraph_unsafe in getattr(torch.ops.memoir_fast, name).default.tags
