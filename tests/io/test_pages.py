"""A memory's pages in its files."""

import dataclasses

import pytest
import torch

from memoir_fast import RECIPES, Memoir, MemoirConfig
from memoir_fast.errors import CheckpointError
from memoir_fast.io import checkpoint, pages, plausible

FACTS = [(f"The number {number} is", ["Rome", "camel", "Greek"][number % 3]) for number in range(5)]
RECIPE = dataclasses.replace(RECIPES["fast"], prefixes=0, rewordings=0, questions=0, steps=3)


@pytest.fixture
def memoir(tiny_llama, tiny_tokenizer):
    config = MemoirConfig(recipe=RECIPE, tau=0.9, k=16, background=8, page_edits=2)
    made = Memoir.attach(tiny_llama, tiny_tokenizer, config)
    made.edit(FACTS, progress=False)
    return made


def _answers(memoir):
    batch = memoir.tokenizer([prompt for prompt, _ in FACTS], return_tensors="pt", padding=True)
    with torch.no_grad():
        return memoir.model(**batch).logits


def _rows(memoir):
    return [memoir.layer.memory.weight[memoir.layer.store.columns[one].long()] for one in memoir.layer.store.live]


def test_pages_come_back_as_they_were(memoir, tiny_tokenizer, tmp_path):
    assert memoir.status().pages == 3
    answers, rows = _answers(memoir), _rows(memoir)
    memoir.save_pretrained(tmp_path)
    loaded = Memoir.from_pretrained(memoir.detach(), tiny_tokenizer, tmp_path)
    assert loaded.status().pages == 3 and loaded.layer.store.page[:5].tolist() == [0, 0, 1, 1, 2]
    assert torch.equal(_answers(loaded), answers) and all(map(torch.equal, _rows(loaded), rows))
    loaded.edit("One more", "Rome")
    assert loaded.layer.store.page[5] == 2, "it goes where there is room"


def test_pages_that_hold_nothing_are_left_out(memoir, tiny_tokenizer, tmp_path):
    """Page 0 is emptied and given nothing; a deleted edit of it lives nowhere."""
    for edit_id in (0, 1):
        memoir.delete(edit_id)
    memoir.layer.memory.page(0).zero_()
    memoir.layer.store.leave(0)
    rows = _rows(memoir)
    memoir.save_pretrained(tmp_path)
    saved = checkpoint.read(tmp_path).tensors
    assert saved["page"].tolist() == [-1, -1, 0, 0, 1] and int(saved["memory_rows"].max()) < 2 * 48
    loaded = Memoir.from_pretrained(memoir.detach(), tiny_tokenizer, tmp_path)
    assert all(map(torch.equal, _rows(loaded), rows)) and loaded.layer.store.live == [2, 3, 4]


def test_one_page_is_saved_as_it_was_before_there_were_more(memoir):
    for edit_id in (2, 3, 4):
        memoir.delete(edit_id)
    memoir.layer.memory.restore(memoir.layer.memory.page(0).clone())
    memoir.layer.store.leave(1), memoir.layer.store.leave(2)
    found = pages.tensors(memoir.layer)
    assert found["page"].tolist() == [0, 0, -1, -1, -1]
    memoir.layer.store.truncate(2)
    assert list(pages.tensors(memoir.layer)) == ["memory_rows", "memory_values"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t["page"].fill_(-1), "every live edit must live on a page"),
        (lambda t: t["page"].fill_(-2), "page at least -1"),
        (lambda t: t["page"].fill_(1 << 30), "there are 1073741825 pages, for 5 edits"),
        (lambda t: t["memory_rows"].neg_(), "memory_rows must be at least 0"),
        (lambda t: t["memory_rows"].add_(48 << 20), "pages, for 5 edits"),
        (lambda t: t["memory_rows"].zero_(), "free of repeats"),
        (lambda t: t.update(page=t["page"].long()), r"page must be torch.int32 \[5\]"),
    ],
)
def test_pages_that_cannot_be_are_refused(memoir, tmp_path, change, reason):
    memoir.save_pretrained(tmp_path)
    saved = checkpoint.read(tmp_path)
    change(saved.tensors)
    with pytest.raises(CheckpointError, match=reason):
        checkpoint._require_consistent(saved, tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 700, 999])
def test_a_number_that_is_none_is_found_in_any_piece(dtype, value, place, monkeypatch):
    monkeypatch.setattr("memoir_fast.io.mapped.pieces.__defaults__", (128, None))
    largest = torch.full((1000, 3), torch.finfo(dtype).max, dtype=dtype)
    tensors = {"memory_values": largest}
    plausible.require_numbers(tensors)
    plausible.require_numbers({"memory_values": largest[:0]})
    largest[place, 1] = value
    with pytest.raises(ValueError, match="memory_values must be finite"):
        plausible.require_numbers(tensors)
