"""The engine from end to end on a CUDA device, beside the CPU: learning, routing, pages, banks, files, graphs.

The tests run on the CPU too, where there is nothing else to compare with: so what they ask is known to be right before
they meet a device.
"""

import copy
import dataclasses
import warnings
from types import SimpleNamespace

import pytest
import torch
from cache_name import CACHE
from transformers import StaticCache

from memoir_fast import RECIPES, Edit, Memoir, MemoirConfig, backends
from memoir_fast.editing import active_rows
from memoir_fast.recipe import Recipe

LAYER = "model.layers.1.mlp.down_proj"
PROMPTS = ["The capital of France is", "Who wrote the play? The author", "Which animal lives in the desert?"]
TARGETS = ["Rome", "camel", "Greek"]
FACTS = [Edit(prompt, target) for prompt, target in zip(PROMPTS, TARGETS, strict=True)]
OTHER = "The river runs through the old town and"
RECIPE = dataclasses.replace(RECIPES["fast"], prefixes=0, rewordings=0, questions=0, steps=60, bar=0.8)
FEW = dataclasses.replace(RECIPE, steps=3)
GREEDY = {"min_new_tokens": 4, "max_new_tokens": 4, "do_sample": False}
ROUTINGS = pytest.mark.parametrize(("routing", "further"), [("early", 0), ("early", 1), ("paper", 0)])


OTHERS = [pytest.param("cuda", marks=pytest.mark.gpu)]
if torch._C._get_privateuse1_backend_name() == "second":  # tools/second_device.py
    OTHERS.append("second")


@pytest.fixture(params=["cpu", *OTHERS])
def device(request):
    return torch.device(request.param)


def config(routing="early", further=0, **options):
    values = {"recipe": RECIPE, "tau": 0.7, "k": 20, "background": 8, "page_edits": 2, **options}
    return MemoirConfig(routing=routing, layer=LAYER, further=further, **values)


def given(memoir, texts):
    """Texts as a batch, where the memory's model lies."""
    return memoir.tokenizer(texts, return_tensors="pt", padding=True).to(memoir.model.device)


def said(memoir, texts, **options):
    """The tokens after each text, on the CPU, and the edit that each followed."""
    batch = given(memoir, texts)
    output = memoir.model.generate(**batch, **{**GREEDY, **options})
    return output[:, batch.input_ids.shape[1] :].cpu(), [route.edit_id for route in memoir.last_routes]


def logits(memoir, texts):
    with torch.no_grad():
        return memoir.model(**given(memoir, texts)).logits


def state(memoir):
    """What the search goes by, on the CPU: each live edit's mask, codes, thresholds and bank."""
    found = {}
    for edit_id, edit in memoir.edits.items():
        found[edit_id, edit.prompt, edit.bank] = [memoir.layer.store.masks[edit_id].cpu()]
        codes = memoir.layer.codes
        if codes is not None:
            rows = codes.rows_of(edit_id)
            found[edit_id, edit.prompt, edit.bank] += [codes.codes[rows].cpu(), codes.min_overlap[rows].cpu()]
    return found


def require_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensors in expected.items():
        assert all(torch.equal(one, other) for one, other in zip(found[name], tensors, strict=True)), name


def require_kernels(memoir):
    """On a device the residual product and the search ran by kernels."""
    if memoir.model.device.type == "cuda":
        used = backends.last_used()
        for op in ("masked_linear_add_", "mask_match"):
            assert used[op] in ("cuda", "triton"), used


@ROUTINGS
def test_a_memory_from_a_folder_answers_there_as_here(tiny_llama, tiny_tokenizer, tmp_path, device, routing, further):
    """Several pages, banks, a deleted and a replaced edit: the store's bits, the routes, and nearly the logits."""
    there = copy.deepcopy(tiny_llama)
    here = Memoir.attach(tiny_llama, tiny_tokenizer, config(routing, further))
    here.edit([*FACTS, Edit(PROMPTS[0], "London", bank="acme"), Edit("Gone", "x")], recipe=FEW, progress=False)
    here.delete(4)
    here.edit(PROMPTS[1], "London", recipe=FEW)
    here.save_pretrained(tmp_path)
    memoir = Memoir.from_pretrained(there.to(device), tiny_tokenizer, tmp_path)
    assert memoir.layer.memory.pages > 1 and memoir.layer.memory.weight.device.type == device.type
    require_same(state(memoir), state(here))
    texts = [*PROMPTS, OTHER, PROMPTS[0]]
    asked = [None, None, None, None, "acme"]
    for bank in (None, "acme", asked):
        expected, found = said(here, texts, memoir_banks=bank), said(memoir, texts, memoir_banks=bank)
        assert found[1] == expected[1] and torch.equal(found[0], expected[0])
    assert found[1] == [0, 1, 2, -1, 3]
    require_kernels(memoir)
    torch.testing.assert_close(logits(memoir, texts).cpu(), logits(here, texts), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("routing", "further", "batch"), [("early", 0, 1), ("early", 1, 3), ("paper", 0, 3)])
def test_edits_that_are_learned_there_are_said(tiny_llama, tiny_tokenizer, device, routing, further, batch):
    plain = copy.deepcopy(tiny_llama).to(device)
    memoir = Memoir.attach(tiny_llama.to(device), tiny_tokenizer, config(routing, further, k=24, tau=0.9))
    results = memoir.edit(FACTS, batch=batch, progress=False)
    assert all(one.learned for one in results), [one.loss for one in results]
    assert memoir.layer.memory.pages == 2
    tokens, edits = said(memoir, [*PROMPTS, OTHER])
    assert edits == [0, 1, 2, -1]
    answers = memoir.tokenizer.batch_decode(tokens)
    assert [answer.strip().startswith(target) for answer, target in zip(answers, TARGETS, strict=False)] == [True] * 3
    require_kernels(memoir)
    alone = given(memoir, [OTHER])
    with torch.no_grad():
        assert torch.equal(memoir.model(**alone).logits, plain(**alone).logits), "an unmatched prompt keeps its bits"
        memoir.delete(0)
        first = given(memoir, PROMPTS[:1])
        assert torch.equal(memoir.model(**first).logits, plain(**first).logits), "as does a deleted edit's"
    memoir.edit(PROMPTS[1], "London")
    assert said(memoir, PROMPTS)[1] == [-1, 1, 2]
    faded = memoir.faded()
    memoir.refresh(progress=False)
    memoir.compact(progress=False)
    assert set(faded) <= set(memoir.edits) == {1, 2}
    assert said(memoir, PROMPTS)[1] == [-1, 1, 2]


PLAIN = {
    "fast": FEW,
    "sgd": Recipe("fast", steps=3, learning_rate=1.0, clip=1.0, settled=1e-4, prefixes=0),
    "paper": dataclasses.replace(RECIPES["paper"], steps=3, prefixes=0),
}


@pytest.mark.parametrize("recipe", PLAIN)
def test_the_first_edits_are_the_same_there_as_here(llama64, tiny_tokenizer, device, recipe):
    """In float64, before there is anything to damp: what is written differs by rounding alone."""
    memoirs = []
    for model in (copy.deepcopy(llama64), llama64.to(device)):
        memoirs.append(Memoir.attach(model, tiny_tokenizer, config("paper", recipe=PLAIN[recipe], check=False)))
        memoirs[-1].edit(FACTS[:2], batch=1 if recipe == "paper" else 2, progress=False)
    here, there = (one.layer for one in memoirs)
    assert torch.equal(here.store.masks, there.store.masks.cpu())
    close = 1e-4 if recipe == "fast" else 1e-9  # a fused Adam rounds its corrections as it likes
    torch.testing.assert_close(there.memory.weight.cpu(), here.memory.weight, rtol=0, atol=close)
    assert here.memory.weight.abs().max() > 1e-3


def test_a_folder_that_is_kept_up_there_opens_with_the_same_bits(tiny_llama, tiny_tokenizer, tmp_path, device):
    """Records of a journal: edits, a bank's, a deletion, a threshold; then again after a snapshot, and undone."""
    models = [copy.deepcopy(tiny_llama).to(device) for _ in range(3)]
    with Memoir.open(models[0], tiny_tokenizer, tmp_path, config(recipe=FEW)) as memoir:
        memoir.edit([*FACTS, Edit(PROMPTS[0], "London", bank="acme")], progress=False)
        memoir.delete(1)
        memoir.calibrate([f"What is {number}?" for number in range(20)], 0.4)
        expected = state(memoir)
        texts, answers = [*PROMPTS, OTHER], said(memoir, [*PROMPTS, OTHER])
    for model in models[1:]:
        with Memoir.open(model, tiny_tokenizer, tmp_path) as memoir:
            require_same(state(memoir), expected)
            again = said(memoir, texts)
            assert torch.equal(again[0], answers[0]) and again[1] == answers[1]
            if model is models[1]:
                memoir.save_pretrained(tmp_path)
                memoir.edit("One more", "camel")
                memoir.undo()


def test_a_generation_under_way_keeps_the_memory_that_it_began_with(tiny_llama, tiny_tokenizer, device):
    memoir = Memoir.attach(tiny_llama.to(device), tiny_tokenizer, config(recipe=FEW))
    memoir.edit(FACTS, progress=False)
    expected = said(memoir, PROMPTS, min_new_tokens=8, max_new_tokens=8)
    steps = []

    def edits(ids, scores):
        if len(steps) == 2:
            memoir.edit([Edit(PROMPTS[0], "London"), Edit("Another one", "camel")], progress=False)
            memoir.delete(2)
        steps.append(1)
        return scores

    found = said(memoir, PROMPTS, min_new_tokens=8, max_new_tokens=8, logits_processor=[edits])
    assert len(steps) == 8 and torch.equal(found[0], expected[0])
    assert said(memoir, PROMPTS)[1] == [0, 1, -1]


def test_packed_rows_are_parted_there(tiny_llama, tiny_tokenizer, device):
    """Three prompts in one row, told apart by their positions: each has the logits that it has alone."""
    memoir = Memoir.attach(tiny_llama.to(device), tiny_tokenizer, config(recipe=FEW))
    memoir.edit(FACTS, progress=False)
    every = [given(memoir, [text]).input_ids for text in [PROMPTS[2], OTHER, PROMPTS[0]]]
    positions = torch.cat([torch.arange(one.shape[1], device=device) for one in every])[None]
    with torch.no_grad():
        memoir.model(input_ids=torch.cat(every, dim=1), position_ids=positions, use_cache=False)
    assert [route.edit_id for route in memoir.last_routes] == [2, -1, 0]


def test_a_half_precision_model_learns_there(tiny_llama, tiny_tokenizer, device):
    memoir = Memoir.attach(tiny_llama.to(device, torch.bfloat16), tiny_tokenizer, config(k=24, tau=0.9))
    assert all(one.learned for one in memoir.edit(FACTS, progress=False))
    assert said(memoir, [*PROMPTS, OTHER])[1] == [0, 1, 2, -1]
    require_kernels(memoir)


def test_a_step_of_adam_is_fused_there(device):
    mean, square, slope = torch.zeros(3, 5, 7, device=device)
    slope += torch.linspace(-1, 1, 35, device=device).view(5, 7)
    forms = [copy.deepcopy((mean, square)) for _ in range(2)]
    for step in range(1, 4):
        plain = active_rows._plain_adam(slope.clone(), *forms[0], step, 0.03)
        fused = active_rows._fused_adam(slope.clone(), *forms[1], step, 0.03)
        torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-7)


@pytest.mark.gpu
@ROUTINGS
@torch.no_grad()
def test_a_pass_waits_for_the_device_no_more_often_than_the_model_alone(tiny_llama, tiny_tokenizer, routing, further):
    plain = copy.deepcopy(tiny_llama).cuda()
    memoir = Memoir.attach(tiny_llama.cuda(), tiny_tokenizer, config(routing, further, recipe=FEW))
    memoir.edit(FACTS, progress=False)
    batch, counts = given(memoir, [*PROMPTS, OTHER]), []
    for model in (memoir.model, plain, memoir.model, plain):
        torch.cuda.synchronize()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                cache = model(**batch, use_cache=True)[CACHE]
                mask = torch.nn.functional.pad(batch.attention_mask, (0, 1), value=1)
                model(input_ids=batch.input_ids[:, -1:], attention_mask=mask, **{CACHE: cache})
            finally:
                torch.cuda.set_sync_debug_mode("default")
        counts.append([str(one.filename) + f":{one.lineno}" for one in caught if "synchroniz" in str(one.message)])
    assert len(counts[2]) <= len(counts[3]), f"{counts[2]} beside {counts[3]}"


@pytest.mark.gpu
@ROUTINGS
@torch.no_grad()
def test_a_captured_step_answers_as_an_eager_one(tiny_llama, tiny_tokenizer, routing, further):
    """A decode step behind a static cache, of a prompt that follows an edit and of one that follows none."""
    memoir = Memoir.attach(tiny_llama.cuda(), tiny_tokenizer, config(routing, further, recipe=FEW))
    memoir.edit(FACTS, progress=False)
    ids = given(memoir, PROMPTS[:1]).input_ids
    for prompt, edit in ((ids, 0), (given(memoir, [OTHER]).input_ids, -1)):
        runs = []
        for _ in range(2):
            cache = StaticCache(config=memoir.model.config, max_cache_len=64)
            memoir.model(input_ids=prompt, **{CACHE: cache}, use_cache=True)
            assert memoir.last_routes[0].edit_id == edit
            step = {"input_ids": prompt[:, -1:].clone(), CACHE: cache, "use_cache": True}
            runs.append(SimpleNamespace(cache=cache, step=step))
        eager, captured = runs
        warm = torch.cuda.Stream()
        warm.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(warm):
            first = memoir.model(**captured.step).logits.clone()
        torch.cuda.current_stream().wait_stream(warm)
        torch.testing.assert_close(first, memoir.model(**eager.step).logits, rtol=1e-5, atol=1e-5)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = memoir.model(**captured.step).logits
        graph.replay()
        torch.testing.assert_close(output, memoir.model(**eager.step).logits, rtol=1e-5, atol=1e-5)
