"""Peak memory of learning stays within the formula of `editing.footprint`, and the formula is no fantasy."""

import dataclasses
import os
import sys

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaForCausalLM

from memoir_fast import RECIPES, Edit, Memoir, MemoirConfig
from memoir_fast.editing import fast
from memoir_fast.editing.batch import Request
from memoir_fast.editing.footprint import LARGEST_BATCH, _free_bytes, footprint, largest_batch
from memoir_fast.editing.interference import PageInterference

LAYER = "model.layers.8.mlp.down_proj"


class _LiveBytes(TorchDispatchMode):
    """The most bytes that storages made within the block held at one time."""

    def __init__(self):
        super().__init__()
        self._live, self.peak = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if _is_tensor(leaf)}
        output = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if _is_tensor(leaf) and leaf.untyped_storage().data_ptr() not in given:
                storage = leaf.untyped_storage()
                self._live[storage.data_ptr()] = (StorageWeakRef(storage), storage.nbytes())
        self._live = {key: value for key, value in self._live.items() if not value[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return output


def _is_tensor(value):
    return isinstance(value, torch.Tensor)


@pytest.fixture(scope="module")
def llama():
    """Wide against its vocabulary and its batch, as real models are."""
    config = LlamaConfig(
        vocab_size=384,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=12,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize(
    ("edits", "optimizer", "further"), [(1, "adam", 0), (1, "sgd", 0), (4, "adam", 0), (4, "sgd", 0), (4, "adam", 3)]
)
def test_peak_is_within_the_formula(llama, tiny_tokenizer, optimizer, further, edits):
    recipe = dataclasses.replace(
        RECIPES["fast"], steps=2, optimizer=optimizer, prefixes=2, batch=edits, damping=float(optimizer == "adam")
    )
    memoir = Memoir.attach(
        llama, tiny_tokenizer, MemoirConfig(k=128, tau=0.5, recipe=recipe, layer=LAYER, further=further)
    )
    try:
        wanted = [Edit(f"The color of stone number {index} is", "green") for index in range(edits)]
        prepared = [Request(edit, memoir.rows(edit, recipe), boundary=recipe.boundary) for edit in wanted]
        context = memoir._context
        fast.learn(context, prepared[:1], recipe, 0)  # prefixes and the block's kind are known from here on
        expected = footprint(context, [one.rows for one in prepared], recipe)
        with _LiveBytes() as live:
            fast.learn(context, prepared, recipe, 0)
        assert 0.25 * expected.total < live.peak < expected.total, (live.peak, expected)
        assert live.peak > memoir.layer.memory.weight.nbytes / 2, "nothing was measured"
    finally:
        memoir.detach()


def test_auto_batch_follows_the_free_memory(llama, tiny_tokenizer, monkeypatch):
    memoir = Memoir.attach(llama, tiny_tokenizer, MemoirConfig(k=128, tau=0.5))
    try:
        rows = memoir.rows(Edit("The sky is", "green"), RECIPES["fast"])
        one = footprint(memoir._context, [rows], RECIPES["fast"]).total
        moments = 4 * memoir.layer.in_features**2
        for free, expected in ((0, 1), (2 * one, 1), (6 * one + 10, 3), (1 << 50, LARGEST_BATCH)):
            for noted, taken in ((False, moments), (True, 0)):
                interference = PageInterference()
                if noted:
                    interference.of(0)[0].add(memoir.layer.in_features, torch.arange(4).int(), torch.ones(2, 4))
                context = dataclasses.replace(memoir._context, interference=interference)
                monkeypatch.setattr("memoir_fast.editing.footprint._free_bytes", lambda _, free=free + taken: free)
                assert largest_batch(context, rows, RECIPES["fast"]) == expected
        results = memoir.edit([(f"Stone {index} is", "red") for index in range(3)], batch="auto", progress=False)
        assert [result.edit_id for result in results] == [0, 1, 2]
    finally:
        memoir.detach()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells what it can free")
def test_what_files_are_cached_in_counts_as_free(tmp_path):
    file = tmp_path / "cached"
    file.write_bytes(bytes(256 << 20))
    file.read_bytes()
    unused = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert unused + (128 << 20) < _free_bytes(torch.device("cpu")) <= total
