"""Copies, pickles and files of an edited model."""

import copy
import dataclasses
import io
import logging
import os
import pickle
import re
import threading
from pathlib import Path

import pytest
import torch
from cache_name import CACHE
from transformers import AutoModelForCausalLM

from memoir_fast import RECIPES, Memoir, MemoirConfig
from memoir_fast.modules import MemoirLinear

PROMPT = "The capital of France is"


def saved_and_loaded(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


WAYS = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "torch.save": saved_and_loaded,
}


@pytest.fixture(params=WAYS)
def copied(request):
    return WAYS[request.param]


@pytest.fixture
def memoir(tiny_llama, tiny_tokenizer):
    tiny_llama.lm_head.weight.data *= 4
    recipe = dataclasses.replace(RECIPES["fast"], prefixes=0, rewordings=0, questions=0, steps=80, learning_rate=0.1)
    made = Memoir.attach(tiny_llama, tiny_tokenizer, MemoirConfig(recipe=recipe, tau=0.9, k=24, background=8))
    made.edit(PROMPT, "Rome")
    return made


def said(model, tokenizer):
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    return model.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0, eos_token_id=None)[0].tolist()


def test_a_copied_model_follows_the_edits_that_it_has(memoir, copied, tiny_tokenizer):
    model = memoir.model
    edited = said(model, tiny_tokenizer)
    other = copied(model)
    assert said(other, tiny_tokenizer) == edited
    memoir.delete(0)
    plain = said(model, tiny_tokenizer)
    assert plain != edited
    assert said(other, tiny_tokenizer) == edited, "its memory is its own"
    ids = tiny_tokenizer(PROMPT, return_tensors="pt").input_ids
    with torch.no_grad():
        cache = other(ids, use_cache=True)
        assert torch.equal(other(ids).logits, cache.logits)


def test_a_copy_takes_the_memory_s_size_once(layer_of_pages):
    """64 MB of pages, in a process that has had more before."""
    status, peak = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not os.access(peak, os.W_OK):
        pytest.skip("the system does not say how much memory was taken at most since a moment")

    def said(name):
        return 1024 * int(re.search(rf"{name}:\s+(\d+)", status.read_text())[1])

    peak.write_text("5")
    before = said("VmRSS")
    other = copy.deepcopy(layer_of_pages)
    assert said("VmHWM") - before < 1.5 * layer_of_pages.memory.weight.nbytes
    assert torch.equal(other.memory.weight, layer_of_pages.memory.weight)
    other.memory.page(1).zero_()
    assert layer_of_pages.memory.page(1).all()


def test_a_change_waits_for_the_copy_of_the_memory_alone():
    """Not for that of the model, to which the layer leads."""
    changed, meanwhile = [], []

    class Base(torch.nn.Linear):
        def __deepcopy__(self, memo):
            other = threading.Thread(target=change, daemon=True)
            other.start()
            other.join(timeout=5)
            meanwhile.append(not other.is_alive())
            return self

    layer = MemoirLinear(Base(64, 4), k=8)

    def change():
        with layer.changing():
            changed.append(True)

    copy.deepcopy(layer)
    assert meanwhile == changed == [True]


@pytest.fixture(params=[None, 4])
def layer_of_pages(request):
    """As many pages as there may be, or fewer."""
    layer = MemoirLinear(torch.nn.Linear(4096, 1024, bias=False), k=16, max_pages=request.param)
    for _ in range(3):
        layer.memory.open()
    layer.memory.weight.fill_(1.0)
    return layer


def test_a_copied_memoir_can_be_taught_on(memoir, copied, tiny_tokenizer):
    edited = said(memoir.model, tiny_tokenizer)
    other = copied(memoir)
    assert other.model is not memoir.model and other.layer in set(other.model.modules())
    assert said(other.model, tiny_tokenizer) == edited and other.last_routes[0].edit_id == 0
    result = other.edit("Which animal lives in the desert?", "camel")
    other.delete(0)
    assert said(memoir.model, tiny_tokenizer) == edited != said(other.model, tiny_tokenizer)
    assert list(memoir.edits) == [0] and list(other.edits) == [result.edit_id]
    plain = other.detach()
    assert not any(isinstance(module, MemoirLinear) for module in plain.modules())
    assert "generate" not in plain.__dict__
    assert said(memoir.model, tiny_tokenizer) == edited, "the original still has its own"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_model_goes_to_a_spawned_process_with_a_memory_of_its_own(memoir, tmp_path, tiny_tokenizer):
    """The other process writes what it got; what is taught here after it was started is not in it."""
    edited = said(memoir.model, tiny_tokenizer)
    process = torch.multiprocessing.get_context("spawn").Process(
        target=torch.save, args=(memoir.model, str(tmp_path / "model.pt"))
    )
    process.start()
    memoir.delete(0)
    memoir.layer.memory.weight.zero_()
    process.join(timeout=120)
    assert process.exitcode == 0
    other = torch.load(tmp_path / "model.pt", weights_only=False)
    assert said(other, tiny_tokenizer) == edited != said(memoir.model, tiny_tokenizer)


def test_a_cache_of_the_original_says_nothing_to_the_copy(memoir, copied, tiny_tokenizer):
    ids = tiny_tokenizer(PROMPT, return_tensors="pt").input_ids
    with torch.no_grad():
        output = memoir.model(ids, use_cache=True)
    assert memoir.followed(output[CACHE]) == [0]
    assert copied(memoir).followed(output[CACHE]) == []


def test_generate_keeps_its_signature_and_name(memoir, tiny_llama):
    import inspect

    own = type(memoir.model).generate
    assert inspect.signature(memoir.model.generate) == inspect.signature(own.__get__(memoir.model))
    assert memoir.model.generate.__name__ == "generate" and memoir.model.generate.__doc__ == own.__doc__


@pytest.mark.parametrize("shards", ["5GB", "20KB"])
def test_save_pretrained_writes_the_plain_model(memoir, tmp_path, caplog, shards):
    plain = {name: tensor.clone() for name, tensor in memoir.model.state_dict().items()}
    memoir.layer._said = False
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="memoir_fast"):
        memoir.model.save_pretrained(tmp_path / "model", max_shard_size=shards)
        memoir.model.save_pretrained(tmp_path / "again", max_shard_size=shards)
    told = [record.getMessage() for record in caplog.records if record.name == "memoir_fast"]
    assert len(told) == 1 and "memoir.save_pretrained(folder) saves those" in told[0]
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    state = loaded.state_dict()
    assert state.keys() == plain.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in plain.items())
    assert memoir.detach().state_dict().keys() == plain.keys(), "the names are the plain model's"


def test_tied_weights_stay_tied(make_tied, tiny_tokenizer, tmp_path):
    memoir = Memoir.attach(make_tied, tiny_tokenizer, MemoirConfig(tau=0.9, k=16, background=8))
    make_tied.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert torch.equal(loaded.lm_head.weight, memoir.model.lm_head.weight)


@pytest.fixture
def make_tied(tiny_llama):
    config = copy.deepcopy(tiny_llama.config)
    config.tie_word_embeddings = True
    return type(tiny_llama)(config).eval()


def test_a_plain_models_state_loads_beside_the_memory(memoir, tiny_tokenizer):
    edited = said(memoir.model, tiny_tokenizer)
    state = memoir.model.state_dict()
    assert not any("memory" in name or "store" in name or "tophash" in name for name in state)
    memoir.model.load_state_dict(state)
    assert said(memoir.model, tiny_tokenizer) == edited


def test_a_layer_by_itself_keeps_its_memory_in_its_state():
    layer = MemoirLinear(torch.nn.Linear(64, 4), k=8, tau=0.9)
    x = torch.randn(1, 5, 64)
    mask, columns = layer.hash(x)
    layer.store.append(mask[0])
    with torch.no_grad():
        layer.memory.update(columns[0], torch.ones(1, 8), torch.ones(1, 4))
        other = MemoirLinear(torch.nn.Linear(64, 4), k=8, tau=0.9, seed=1)
        other.load_state_dict(layer.state_dict())
        assert torch.equal(other(x), layer(x)) and not torch.equal(other(x), other.base(x))
