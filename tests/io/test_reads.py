"""What edits read, in a memory's files: as it was, by everyone who reads them, and nothing that is none."""

import dataclasses
import json

import pytest
import safetensors.torch
import torch

from memoir_fast import RECIPES, Memoir, MemoirConfig
from memoir_fast.errors import CheckpointError
from memoir_fast.io import checkpoint

RECIPE = dataclasses.replace(RECIPES["fast"], prefixes=0, rewordings=0, questions=0, steps=2)
CONFIG = MemoirConfig(recipe=RECIPE, tau=0.9, k=16, background=8, page_edits=3)
FACTS = [(f"The number {number} is", "Rome") for number in range(5)]


@pytest.fixture
def folder(tiny_llama, tiny_tokenizer, tmp_path):
    """Five edits, two of them on a page with room: one in the snapshot and one in the journal."""
    with Memoir.open(tiny_llama, tiny_tokenizer, tmp_path / "memory", CONFIG) as memoir:
        memoir.edit(FACTS[:4], progress=False)
        memoir.save_pretrained(tmp_path / "memory")
        memoir.edit(*FACTS[4])
        folder, kept = tmp_path / "memory", dict(memoir.edits.reads)
    memoir.detach()
    return folder, kept


def same(one, other):
    return list(one) == list(other) and all(
        torch.equal(mine.inputs, yours.inputs) and mine.stop == yours.stop
        for mine, yours in zip(one.values(), other.values(), strict=True)
    )


def test_they_come_back_from_snapshot_and_journal_and_go_with_what_is_undone(folder, tiny_llama, tiny_tokenizer):
    path, kept = folder
    assert list(kept) == [3, 4]
    with Memoir.open(tiny_llama, tiny_tokenizer, path) as memoir:
        assert same(memoir.edits.reads, kept)
        memoir.undo()
        assert same(memoir.edits.reads, {3: kept[3]})
        memoir.delete(3)
        memoir.save_pretrained(path)
    assert not memoir.edits.reads and "reads" not in checkpoint.read(path).tensors
    memoir.detach()


def test_a_snapshot_leaves_those_of_pages_out_that_the_journal_filled(folder, tiny_llama, tiny_tokenizer):
    path, kept = folder
    with Memoir.open(tiny_llama, tiny_tokenizer, path) as memoir:
        memoir.edit("The river is", "wide")
        assert not memoir.edits.reads
    with Memoir.open(memoir.detach(), tiny_tokenizer, path) as memoir:
        assert same(memoir.edits.reads, kept)
        memoir.edit("The sky is", "red")
        memoir.save_pretrained(path)
    assert checkpoint.read(path).tensors["reads_of"][:, 0].tolist() == [6]
    memoir.detach()


def test_a_merge_takes_them_along(folder, tiny_llama, tiny_tokenizer, tmp_path):
    path, kept = folder
    with Memoir.open(tiny_llama, tiny_tokenizer, path) as memoir:
        memoir.save_pretrained(path)
    memoir = Memoir.attach(memoir.detach(), tiny_tokenizer, CONFIG)
    memoir.edit([("The river is", "wide"), (FACTS[4][0], "Eve")], progress=False)
    added = memoir.merge(path).added
    assert same({2: memoir.edits.reads[added[3]], 3: memoir.edits.reads[1]}, {2: kept[3], 3: kept[4]})
    assert memoir.edits[1].target == "Rome" and not memoir.edits.gone  # all is counted anew
    memoir.detach()


def _put(place, number):
    def change(tensor):
        tensor.view(-1)[place] = number
        return tensor

    return change


HOSTILE = {
    "nan": {"reads": _put(0, float("nan"))},
    "without an end": {"reads": _put(0, 1e30)},
    "another type": {"reads": lambda old: old.half()},
    "one side": {"reads": lambda old: old.flatten()},
    "other columns": {"reads": lambda old: old[:, 1:].contiguous()},
    "a token too few": {"reads": lambda old: old[1:].contiguous()},
    "nobody's": {"reads_of": lambda _: None},
    "nothing": {"reads": lambda _: None},
    "of no edit": {"reads_of": lambda old: old[:0]},
    "two sides": {"reads_of": lambda old: old[:, :2].contiguous()},
    "long ids": {"reads_of": lambda old: old.long()},
    "of an edit that there is not": {"reads_of": _put(0, 9)},
    "below nothing": {"reads_of": lambda old: torch.cat([_put(1, 99)(old), _put(1, -99)(old.clone())])},
    "closed twice": {"reads_of": _put(2, 2)},
    "of one edit twice": {
        "reads": lambda old: torch.cat([old, old]),
        "reads_of": lambda old: torch.cat([old, old]),
    },
}


@pytest.mark.parametrize("changes", HOSTILE.values(), ids=HOSTILE)
def test_what_no_edit_reads_is_refused(folder, tiny_llama, tiny_tokenizer, changes):
    path = folder[0]
    (data,) = path.glob("memory-*")
    tensors = safetensors.torch.load(data.read_bytes())
    changed = {name: changes.get(name, lambda old: old)(one.clone()) for name, one in tensors.items()}
    content = safetensors.torch.save({name: one for name, one in changed.items() if one is not None})
    values = json.loads((path / checkpoint.CONFIG_NAME).read_bytes())
    values["files"]["memory"] = new = checkpoint._entry("memory", content)
    (path / new["name"]).write_bytes(content)
    values["checksum"] = checkpoint._checksum(values)
    (path / checkpoint.CONFIG_NAME).write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="reads"):
        Memoir.from_pretrained(tiny_llama, tiny_tokenizer, path, check=False)
