"""What a pass on a device would wait for, and what it launches: on the meta device, where there is nothing to read.

And how much Python a decode step runs, which is what it costs where the host is slower than the device.
"""

import collections
import copy
import dataclasses
import sys
from types import SimpleNamespace

import pytest
import torch
from cache_name import CACHE
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache

from memoir_fast import RECIPES, Edit, Memoir, MemoirConfig
from memoir_fast.hf.banks import asked

FACTS = ("The capital of France is", "Who wrote the play? The author", "Which animal lives in the desert?")
ADDED = "memoir_fast.masked_linear_add_.default"


class NothingSent(TorchFunctionMode):
    """Raises where numbers go from the host to the device, or a tensor from one to the other: both wait for it."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor, torch.asarray) and result.is_meta and result.numel():
            raise AssertionError(f"{args[0]} is sent to the device")
        if func in (torch.Tensor.to, torch.Tensor.copy_, torch.Tensor.__setitem__, torch.Tensor.cpu):
            devices = {one.device.type for one in (*args, result) if isinstance(one, torch.Tensor)}
            if len(devices) > 1:
                raise AssertionError(f"{func.__name__} between {devices}")
        return result


class Launched(TorchDispatchMode):
    """Counts operations, views left out."""

    def __init__(self):
        super().__init__()
        self.counted = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view and "reshape" not in str(func):
            self.counted[str(func)] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture(params=[("paper", 1), ("early", 0), ("early", 1)], ids=str)
def edited(request, tiny_llama, tiny_tokenizer):
    """A memory of one or two layers, several pages and two banks; `plain` is the model without it."""
    plain = copy.deepcopy(tiny_llama)
    routing, further = request.param
    recipe = dataclasses.replace(RECIPES["paper"], steps=1, prefixes=0)
    config = MemoirConfig(
        routing=routing,
        layer="model.layers.1.mlp.down_proj",
        further=further,
        k=20,
        tau=0.7,
        page_edits=2,
        recipe=recipe,
    )
    memoir = Memoir.attach(tiny_llama, tiny_tokenizer, config)
    banks, subjects = ("", "acme", "emea"), ("France", "", "desert")
    edits = [Edit(fact, "x", bank=one, subject=about) for fact, one, about in zip(FACTS, banks, subjects, strict=True)]
    memoir.edit(edits, progress=False)
    assert memoir.layer.memory.pages > 1
    return SimpleNamespace(model=tiny_llama, plain=plain, memoir=memoir, layers=1 + further, routing=routing)


@pytest.fixture
def on_meta(edited):
    """The same, gone to the meta device."""
    edited.model.to("meta"), edited.plain.to("meta")
    return edited


def _ids(tokens):
    return torch.zeros(3, tokens, dtype=torch.int64, device="meta")


@torch.no_grad()
@pytest.mark.parametrize("which", ["", ("acme", None, ("emea", "acme"))], ids=["none", "of each row"])
def test_nothing_is_read_and_nothing_is_sent(on_meta, which):
    cache, router = DynamicCache(), on_meta.memoir.layer.router
    for tokens in (5, 3, 1, 1):
        with router.overridden(asked_banks=asked(which)), NothingSent():
            output = on_meta.model(_ids(tokens), **{CACHE: cache})
        assert output.logits.shape == (3, tokens, 384)
    assert cache.memoir_state.route.device.type == "meta"


@torch.no_grad()
def test_what_a_decode_step_launches_beside_the_model(on_meta):
    """One kernel for each layer; by masks, the running mean's few operations too."""
    counts = []
    for model in (on_meta.model, on_meta.plain):
        cache = DynamicCache()
        for tokens in (5, 1):
            model(_ids(tokens), **{CACHE: cache})
        with Launched() as launched:
            model(_ids(1), **{CACHE: cache})
        counts.append(launched.counted)
    beside = counts[0] - counts[1]
    assert beside.pop(ADDED) == on_meta.layers and not counts[1] - counts[0]
    assert beside.total() == {"paper": 3, "early": 0}[on_meta.routing], beside


def _calls(model, ids):
    """Functions of Python and of C that a decode step calls."""
    cache, calls = DynamicCache(), 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event in ("call", "c_call")

    for tokens in (ids, ids[:, -1:]):
        model(tokens, **{CACHE: cache})
    sys.setprofile(count)
    try:
        model(ids[:, -1:], **{CACHE: cache})
    finally:
        sys.setprofile(None)
    return calls


@torch.no_grad()
def test_how_much_python_a_decode_step_runs_beside_the_model(edited):
    """A call is half a microsecond or so. What has no need of being asked in every step is not."""
    ids = edited.memoir.tokenizer(FACTS[0], return_tensors="pt").input_ids
    beside = _calls(edited.model, ids) - _calls(edited.plain, ids)
    assert edited.memoir.last_routes[0].edit_id == 0
    assert beside <= {("paper", 2): 385, ("early", 1): 310, ("early", 2): 450}[edited.routing, edited.layers]


TEMPLATE = "{% for one in messages %}<|im_start|>{{ one.role }}\n{{ one.content }}<|im_end|>\n{% endfor %}"


@torch.no_grad()
@pytest.mark.parametrize(
    ("routing", "template", "most"),
    [("paper", None, 17), ("early", None, 68), ("early", TEMPLATE, 95)],
    ids=["masks", "codes", "codes, chats"],
)
def test_what_a_prefill_launches_beside_the_model(tiny_llama, tiny_tokenizer, routing, template, most):
    """Each costs a GPU two microseconds or more, whatever the prompt's length."""
    tiny_tokenizer.chat_template = template
    plain = copy.deepcopy(tiny_llama).to("meta")
    memoir = Memoir.attach(
        tiny_llama, tiny_tokenizer, MemoirConfig(routing=routing, layer="model.layers.1.mlp.down_proj")
    )
    memoir.edit(FACTS[0], "x", recipe=dataclasses.replace(RECIPES["fast"], steps=1))
    assert memoir.layer.store.rests and bool(template) == bool(memoir.layer.code and memoir.layer.code.opened)
    counts = []
    for model in (tiny_llama.to("meta"), plain):
        with Launched() as launched:
            model(_ids(5)[:1])
        counts.append(launched.counted)
    beside = counts[0] - counts[1]
    assert not counts[1] - counts[0] and beside.total() <= most, beside
