"""`Memoir.compact`: pages are filled up, and what deleted edits left goes."""

import dataclasses

import pytest
import torch

from memoir_fast import RECIPES, Memoir, MemoirConfig

FACTS = [(f"The number {number} is", ["Rome", "camel", "Greek"][number % 3]) for number in range(8)]
RECIPE = dataclasses.replace(RECIPES["fast"], prefixes=0, rewordings=0, questions=0, steps=3)


@pytest.fixture
def memoir(tiny_llama, tiny_tokenizer):
    config = MemoirConfig(recipe=RECIPE, tau=0.9, k=16, background=8, page_edits=2)
    made = Memoir.attach(tiny_llama, tiny_tokenizer, config)
    made.edit(FACTS, progress=False)
    return made


def _lives(memoir):
    return memoir.layer.store.page[: len(memoir.layer.store)].tolist()


def test_full_pages_without_residue_stay(memoir):
    weight = memoir.layer.memory.weight.clone()
    assert memoir.compact(progress=False) == [] and torch.equal(memoir.layer.memory.weight, weight)


def test_edits_of_pages_with_residue_go_to_others(memoir):
    for edit_id in (0, 2, 4, 5):
        memoir.delete(edit_id)
    kept = memoir.layer.memory.page(3).clone()
    results = memoir.compact(progress=False)
    assert [one.edit_id for one in results] == [1, 3] and all(one.replaced for one in results)
    assert sorted(memoir.edits) == [1, 3, 6, 7] and memoir.status().pages == 2
    lives = _lives(memoir)
    assert lives[1] == lives[3] not in (0, 1, 2) and lives[6] == lives[7] == 3
    assert torch.equal(memoir.layer.memory.page(3), kept), "a page that is full stays as it is"
    owned = {row for edit in (1, 3) for row in (memoir.layer.store.columns[edit] - lives[1] * 48).tolist()}
    rows = memoir.layer.memory.page(lives[1]).any(dim=1).nonzero().flatten().tolist()
    assert rows and set(rows) <= owned, "nothing of a deleted edit is left"
    for edit_id in (1, 3, 6, 7):
        ids = memoir.tokenizer(FACTS[edit_id][0], return_tensors="pt").input_ids
        with torch.no_grad():
            memoir.model(ids)
        assert memoir.last_routes[0].edit_id == edit_id
    assert memoir.compact(progress=False) == []
    memoir.edit("One more", "Rome")
    assert _lives(memoir)[-1] in (0, 1, 2), "pages that were given back are used again"


def test_an_interrupt_leaves_every_edit_whole(memoir, monkeypatch):
    memoir.delete(0)
    memoir.delete(2)
    commit, done = memoir._teacher._commit, []

    def interrupted(*args):
        if done:
            raise KeyboardInterrupt
        done.append(1)
        return commit(*args)

    monkeypatch.setattr(memoir._teacher, "_commit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        memoir.compact(progress=False)
    assert memoir._teacher.leaving == frozenset()
    assert _lives(memoir)[1] not in (0, 1) and _lives(memoir)[3] == 1 and sorted(memoir.edits) == [1, *range(3, 8)]
    assert 0 not in memoir.layer.memory.numbers and memoir.layer.memory.page(1).any()
    monkeypatch.undo()
    memoir.compact(progress=False)
    assert _lives(memoir)[1] == _lives(memoir)[3]


def test_what_was_taken_off_is_not_in_a_folder_that_is_open(tiny_llama, tiny_tokenizer, tmp_path):
    config = MemoirConfig(recipe=RECIPE, tau=0.9, k=16, background=8, page_edits=2)
    with Memoir.open(tiny_llama, tiny_tokenizer, tmp_path, config) as memoir:
        memoir.edit(FACTS[:4], progress=False)
        memoir.delete(0)
        assert len(memoir.compact(progress=False)) == 1
        pages, filled = memoir.status().pages, int(memoir.layer.memory.weight.any(dim=1).sum())
        assert memoir.compact(progress=False) == [] and len(list(tmp_path.glob("memory-*"))) == 1
    memoir.detach()
    with Memoir.open(tiny_llama, tiny_tokenizer, tmp_path) as again:
        assert again.status().pages == pages and int(again.layer.memory.weight.any(dim=1).sum()) == filled
