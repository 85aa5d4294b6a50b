"""Taking the edits of a saved memory into another."""

import dataclasses

import pytest
import torch

from memoir_fast import RECIPES, Edit, Memoir, MemoirConfig
from memoir_fast.cli.commands.log import words
from memoir_fast.errors import CheckpointError, MemoirError, StoreFullError
from memoir_fast.io import checkpoint, durable
from memoir_fast.io.history import History, happened

RECIPE = dataclasses.replace(RECIPES["fast"], prefixes=0, rewordings=0, questions=0, steps=3)
OURS = [("The number one is", "Rome"), ("The number two is", "camel"), ("Who wrote the play?", "Bob")]
THEIRS = [("The river is", "wide"), OURS[1], ("Who wrote the play?", "Eve"), ("The sky is", "red")]


@pytest.fixture(params=["early", "paper"])
def folders(tiny_llama, tiny_tokenizer, tmp_path, request):
    """Two memories of one model, saved; their answers to their own prompts."""
    answers = []
    for name, facts in (("ours", OURS), ("theirs", THEIRS)):
        memoir = Memoir.attach(tiny_llama, tiny_tokenizer, _config(request.param))
        memoir.edit(facts, progress=False)
        memoir.save_pretrained(tmp_path / name)
        answers.append({prompt: _answer(memoir, prompt) for prompt, _ in facts})
        memoir.detach()
    return tmp_path, answers


def _config(routing, page_edits=2):
    return MemoirConfig(tau=0.9, k=16, background=8, page_edits=page_edits, routing=routing, recipe=RECIPE)


def _answer(memoir, prompt):
    with torch.no_grad():
        logits = memoir.model(memoir.tokenizer(prompt, return_tensors="pt").input_ids).logits
    return logits


def _ours(folders, model, tokenizer):
    return Memoir.from_pretrained(model, tokenizer, folders[0] / "ours")


def test_edits_come_with_their_pages_and_answer_as_they_did(folders, tiny_llama, tiny_tokenizer):
    memoir = _ours(folders, tiny_llama, tiny_tokenizer)
    found = memoir.merge(folders[0] / "theirs")
    assert found.added == [3, 2, 4] and found.same == [1], "the winner of a conflict has the id of the other"
    assert found.conflicts == [(Edit(*OURS[2]), Edit(*THEIRS[2]))]
    assert memoir.edits[2].target == "Eve" and len(memoir.edits) == 5 and memoir.status().pages == 4
    ours, theirs = folders[1]
    for prompt, logits in {**ours, **theirs, OURS[1][0]: ours[OURS[1][0]]}.items():
        assert torch.equal(_answer(memoir, prompt), logits), prompt
        assert memoir.last_routes[0].edit_id == memoir.edits.id_of(prompt)
    memoir.edit("One more", "Rome")
    assert len(memoir.edits) == 6


def test_this_memory_wins_where_it_is_preferred(folders, tiny_llama, tiny_tokenizer):
    memoir = _ours(folders, tiny_llama, tiny_tokenizer)
    found = memoir.merge(folders[0] / "theirs", prefer="this")
    assert found.added == [3, 4] and memoir.edits[2].target == "Bob"
    assert torch.equal(_answer(memoir, OURS[2][0]), folders[1][0][OURS[2][0]])


def test_what_was_merged_is_saved_and_loaded(folders, tiny_llama, tiny_tokenizer):
    memoir = _ours(folders, tiny_llama, tiny_tokenizer)
    memoir.merge(folders[0] / "theirs")
    answers = {edit.prompt: _answer(memoir, edit.prompt) for edit in memoir.edits.values()}
    memoir.save_pretrained(folders[0] / "both")
    loaded = Memoir.from_pretrained(memoir.detach(), tiny_tokenizer, folders[0] / "both")
    assert all(torch.equal(_answer(loaded, prompt), logits) for prompt, logits in answers.items())


@pytest.mark.parametrize(
    ("change", "error", "reason"),
    [
        ({"k": 12}, MemoirError, "k: 12 here, 16 there"),
        ({"seed": 1}, MemoirError, "permutation differs"),
        ({"max_edits": 2}, StoreFullError, "the store holds 0 of max_edits = 2, 4 more do not fit"),
        ({"max_pages": 2}, StoreFullError, "the memory has 1 of max_pages = 2, 2 more do not fit"),
        ({"layer": "model.layers.1.mlp.down_proj"}, MemoirError, "layer: model.layers.1"),
    ],
)
def test_what_cannot_be_merged_changes_nothing(folders, tiny_llama, tiny_tokenizer, change, error, reason):
    saved = Memoir.from_pretrained(tiny_llama, tiny_tokenizer, folders[0] / "theirs")
    config = saved.config.replace(**{"routing_block": None, **change})
    saved.detach()
    memoir = Memoir.attach(tiny_llama, tiny_tokenizer, config)
    with pytest.raises(error, match=reason):
        memoir.merge(folders[0] / "theirs")
    assert memoir.edits == {} and len(memoir.layer.store) == 0 and not memoir.layer.memory.weight.any()
    with pytest.raises(ValueError, match="prefer must be one of other, this, got 'newer'"):
        memoir.merge(folders[0] / "theirs", prefer="newer")


def _files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_merge_that_cannot_be_saved_did_not_happen(folders, tiny_llama, tiny_tokenizer, monkeypatch):
    """Else what is taught next would be put down on top of edits that no file has."""
    folder = folders[0] / "ours"
    memoir = Memoir.open(tiny_llama, tiny_tokenizer, folder)
    memoir.edit("One more", "Rome")
    before, files = dict(memoir.edits), _files(folder)
    said = {prompt: _answer(memoir, prompt) for prompt, _ in OURS}

    def full(*_):
        raise CheckpointError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", full)
        with pytest.raises(CheckpointError, match="no room"):
            memoir.merge(folders[0] / "theirs")
    assert memoir.edits == before and {**_files(folder), "history.jsonl": b""} == {**files, "history.jsonl": b""}
    assert all(torch.equal(_answer(memoir, prompt), logits) for prompt, logits in said.items())
    assert memoir.edit("And another", "camel").edit_id == 4
    answers = {edit.prompt: _answer(memoir, edit.prompt) for edit in memoir.edits.values()}
    again = Memoir.open(memoir.detach(), tiny_tokenizer, folder)
    assert all(torch.equal(_answer(again, prompt), logits) for prompt, logits in answers.items())
    again.close()


def test_the_history_tells_of_a_merge(folders, tiny_llama, tiny_tokenizer):
    folder = folders[0] / "ours"
    with Memoir.open(tiny_llama, tiny_tokenizer, folder) as memoir:
        memoir.edit("One more", "Rome")
        memoir.merge(folders[0] / "theirs")
        memoir.edit("And another", "camel")
    told = list(happened(History(folder), durable.read_pair(folder)[1]))
    assert [(one["kind"], one["sequence"]) for one in told] == [("edit", 1), ("merge", 0), ("edit", 1)]
    assert told[1].items() >= {"added": 3, "same": 1, "conflicts": 1, "source": str(folders[0] / "theirs")}.items()
    assert words(told[1]) == f"3 edits of {folders[0] / 'theirs'} taken over, 1 were here, 1 conflicts"
    assert told[0]["journal"] != told[1]["journal"] == told[2]["journal"]


def test_a_page_that_was_given_back_keeps_what_is_merged_to_it(folders, tiny_llama, tiny_tokenizer):
    """The record of the next edit there must not say that the page was empty."""
    folder = folders[0] / "ours"
    memoir = Memoir.open(tiny_llama, tiny_tokenizer, folder)
    memoir.delete(0)
    memoir.compact(progress=False)
    assert memoir.status().pages == 1
    memoir.merge(folders[0] / "theirs", prefer="this")
    memoir.edit([("One more", "Rome"), ("And another", "camel")], progress=False)
    assert memoir.status().pages == 3
    answers = {edit.prompt: _answer(memoir, edit.prompt) for edit in memoir.edits.values()}
    again = Memoir.open(memoir.detach(), tiny_tokenizer, folder)
    assert all(torch.equal(_answer(again, prompt), logits) for prompt, logits in answers.items())
    again.close()


def test_a_refused_merge_leaves_what_is_known_for_learning(folders, tiny_llama, tiny_tokenizer):
    """Else what is taught next is not held back where earlier edits read."""
    answers = []
    for refused in (False, True):
        folder = folders[0] / f"one {refused}"
        with Memoir.open(tiny_llama, tiny_tokenizer, folder, _config("paper", page_edits=9)) as memoir:
            memoir.edit(OURS[:2], progress=False)
            if refused:
                with pytest.raises(ValueError, match="prefer"):
                    memoir.merge(folders[0] / "theirs", prefer="newer")
            memoir.edit(*OURS[2])
            answers.append([_answer(memoir, prompt) for prompt, _ in OURS])
        memoir.detach()
    assert all(map(torch.equal, *answers))
