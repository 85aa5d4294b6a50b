"""A cache is found by what it is, wherever it lies."""

import copy
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cache_name import CACHE
from transformers import DynamicCache, EncoderDecoderCache, StaticCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from memoir_fast.hf.cache import find_cache, held, is_cache, remember, remembered


class Strange:
    """A cache of another library: no class of transformers', the same manner."""

    def update(self, keys, values, layer_idx):
        return keys, values

    def get_seq_length(self, layer_idx=0):
        return 3


class Rows:
    """A state that writes down how it was moved."""

    def __init__(self):
        self.moves = []

    def select(self, rows):
        self.moves.append(("select", rows.tolist()))

    def repeat(self, times):
        self.moves.append(("repeat", times))

    def crop(self, removed):
        self.moves.append(("crop", removed))


@pytest.mark.parametrize("kind", ["dynamic", "static", "two", "strange"])
def test_classes_that_are_caches(kind, tiny_llama):
    cache = {
        "dynamic": DynamicCache,
        "static": lambda: StaticCache(config=tiny_llama.config, max_cache_len=8),
        "two": lambda: EncoderDecoderCache(DynamicCache(), DynamicCache()),
        "strange": Strange,
    }[kind]()
    assert is_cache(cache) and find_cache(cache) is cache


@pytest.mark.parametrize(
    "value",
    [None, {}, [], (), "text", 3, 0.5, torch.zeros(2, 3), torch.nn.Linear(2, 2), set(), SimpleNamespace(update=print)],
)
def test_values_that_are_none(value):
    assert not is_cache(value) and find_cache(value) is None and find_cache((value, {"a": value})) is None


def test_the_cache_of_a_call_by_any_name_in_any_place():
    cache, ids = Strange(), torch.zeros(1, 2)
    assert find_cache(((ids, None, cache), {})) is cache
    assert find_cache(((ids,), {"attention_mask": ids, "what_was_said": cache})) is cache
    assert find_cache(((ids,), {"pair": (ids, cache)})) is cache
    assert find_cache(((ids,), {"parts": {"a": ids, "b": cache}})) is cache


def test_the_cache_of_an_output_by_any_name_in_any_place():
    cache, logits = DynamicCache(), torch.zeros(1, 2, 3)
    assert find_cache(CausalLMOutputWithPast(logits=logits, **{CACHE: cache})) is cache
    assert find_cache((logits, cache)) is cache
    assert find_cache((logits, (logits, cache))) is cache
    assert find_cache(SimpleNamespace(logits=logits, memory=cache)) is cache
    assert find_cache({"logits": logits, "memory": cache}) is cache
    assert find_cache(logits) is None


def test_a_state_moves_with_its_cache():
    cache, rows = DynamicCache(), Rows()
    cache.update(torch.zeros(2, 1, 5, 4), torch.zeros(2, 1, 5, 4), 0)
    assert held(cache) == 5 and remembered(cache) is None
    remember(cache, rows)
    assert type(cache).__name__ == "DynamicCache" and isinstance(cache, DynamicCache) and remembered(cache) is rows
    kind = type(cache)
    remember(cache, rows)
    assert type(cache) is kind
    cache.reorder_cache(torch.tensor([1, 0]))
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([3]))
    cache.crop(-2)
    assert rows.moves == [("select", [1, 0]), ("repeat", 2), ("select", [3]), ("crop", 2)]
    assert cache.get_seq_length() == 3
    for other in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        assert type(other) is kind and remembered(other).moves == rows.moves and remembered(other) is not rows
    cache.reset()
    assert remembered(cache) is None
    cache.batch_repeat_interleave(1)  # nothing to move


def test_a_name_that_transformers_takes_back_is_used_nowhere():
    """A model that does not know it ignores it, and answers without what its cache holds."""
    root, chooses = Path(__file__).parents[2], ("cache_name.py", "checks_of_parts.py", "bench_generate.py")
    files = [
        path
        for folder in ("memoir_fast", "tests", "bench", "tools", "examples")
        for path in (root / folder).rglob("*.py")
    ]
    using = {path.name for path in files if "past_key" + "_values" in path.read_text()}
    assert using == set(chooses)
