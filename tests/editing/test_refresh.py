"""`faded` and `refresh`: edits that others overwrote are found and taught again."""

import dataclasses

import pytest

from memoir_fast import RECIPES, Memoir, MemoirConfig
from memoir_fast.errors import UnknownEditError

FACTS = [("The capital of France is", "Lyon"), ("Who wrote the play?", "Bob"), ("The sky is", "green")]


def test_what_was_overwritten_is_taught_again(tiny_llama, tiny_tokenizer, capsys):
    settings = {
        "prefixes": 0,
        "rewordings": 0,
        "questions": 0,
        "stop": False,
        "steps": 500,
        "learning_rate": 0.1,
        "boundary": False,
    }
    recipe = dataclasses.replace(RECIPES["fast"], **settings)
    memoir = Memoir.attach(tiny_llama, tiny_tokenizer, MemoirConfig(k=12, tau=0.9, recipe=recipe))
    assert memoir.faded() == [] and memoir.refresh() == []
    assert capsys.readouterr().err == "", "no bar is shown where there is nothing to look at"
    memoir.edit(FACTS, progress=False)
    memoir.delete(0)
    assert memoir.faded() == [] and memoir.refresh() == []

    memoir.layer.memory.weight[memoir.layer.store.columns[1].long()] = 0
    assert 1 in memoir.faded()
    again = memoir.refresh(progress=False, turns=10)
    assert (1, *FACTS[1]) in [(one.edit_id, one.prompt, one.target) for one in again]
    assert len({one.edit_id for one in again}) == len(again)
    assert all(one.replaced for one in again) and memoir.faded() == [] and list(memoir.edits) == [1, 2]
    memoir.detach()


@pytest.fixture
def paged(tiny_llama, tiny_tokenizer):
    """Five edits, two of them to a page."""
    recipe = dataclasses.replace(RECIPES["fast"], prefixes=0, rewordings=0, questions=0, steps=60)
    config = MemoirConfig(k=16, tau=0.9, recipe=recipe, page_edits=2, background=8)
    memoir = Memoir.attach(tiny_llama, tiny_tokenizer, config)
    memoir.edit([(f"The number {number} is", "Rome") for number in range(5)], progress=False)
    assert memoir.layer.store.page[:5].tolist() == [0, 0, 1, 1, 2]
    return memoir


def test_faded_looks_at_what_it_is_asked_about(paged):
    paged.layer.memory.weight[:] = 0
    every = paged.faded()
    assert len(every) > 2 and paged.faded(among=every[::-2]) == every[::-2] and paged.faded(among=[]) == []
    paged.delete(3)
    with pytest.raises(UnknownEditError, match="no live edit has the id 3"):
        paged.faded(among=[4, 3])


@pytest.mark.parametrize("changes", ["nothing", "calibration", "a code row"])
def test_what_shares_no_page_with_a_taught_edit_is_looked_at_once(paged, changes, monkeypatch):
    """Where a threshold was chosen meanwhile, or is another, all are: it may send any prompt elsewhere."""
    looked, look, edit = [], Memoir.faded, Memoir.edit

    def noted(self, batch=8, progress=False, *, among=None):
        looked.append(sorted(among))
        return look(self, batch, progress, among=among)

    def edited(self, *args, **kwargs):
        taught = edit(self, *args, **kwargs)
        self.calibration = object() if changes == "calibration" else self.calibration
        self.layer.codes.min_overlap[0] -= int(changes == "a code row")
        return taught

    monkeypatch.setattr(Memoir, "faded", noted)
    monkeypatch.setattr(Memoir, "edit", edited)
    paged.layer.memory.page(1).zero_()
    found = paged.refresh(progress=False)
    assert found and {one.edit_id for one in found} <= {2, 3} and look(paged) == []
    assert looked == [[0, 1, 2, 3, 4], [2, 3] if changes == "nothing" else [0, 1, 2, 3, 4]]
