"""An edit as plain values; who asked for it, where it comes from and when it was taught, kept wherever it goes."""

import dataclasses
import json
import time

import pytest

from memoir_fast import RECIPES, Edit, Memoir, MemoirConfig
from memoir_fast.errors import CheckpointError
from memoir_fast.io import changes, checkpoint, durable, renewal
from memoir_fast.io.edit_texts import edit_of, read_edits, texts_of
from memoir_fast.io.readers import read_cases

FULL = Edit(
    "The sky is", "green", ("Its colour is",), ("The sea is",), "acme", "Jo Smith", "https://example.org/7", taught_at=5
)
RECIPE = dataclasses.replace(RECIPES["fast"], prefixes=0, rewordings=0, questions=0, steps=1)
CONFIG = MemoirConfig(recipe=RECIPE, tau=0.9, k=16, background=8, routing="paper")


def whole(edits):
    """With the times, which edits are equal without."""
    return {edit_id: dataclasses.astuple(edit) for edit_id, edit in edits.items()}


def test_values_and_back():
    for edit in (FULL, Edit("The sky is", "green")):
        back = edit_of(json.loads(json.dumps({"id": 7, "unknown": [1], **texts_of(edit)})))
        assert dataclasses.astuple(back) == dataclasses.astuple(edit)
    assert set(texts_of(Edit("The sky is", "green"))) == {"prompt", "target"}, "as releases that knew no more wrote it"


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("prompt", "The sky \ud83d is", r"whole characters, got half of one, '\\ud83d', at 8 of"),
        ("target", "gr\ude00", "whole characters"),
        ("keep", ["\ud83d"], "whole characters"),
        ("author", "Jo\n", "an edit's author must be printable, at most 200"),
        ("author", 7, "an edit's author must be a string, got int"),
        ("source", "x" * 2001, "an edit's source must be printable, at most 2000 characters"),
        ("source", " x", "without white space around it"),
        ("taught_at", "now", "an edit's taught_at must be seconds since 1970, got str"),
        ("taught_at", True, "an edit's taught_at must be seconds since 1970, got bool"),
        ("taught_at", float("inf"), "an edit's taught_at must be finite"),
        ("paraphrases", "x", "paraphrases and keep are lists of texts"),
    ],
)
def test_what_may_not_stand_there_is_refused_by_name(tmp_path, field, value, error):
    with pytest.raises((TypeError, ValueError), match=error):
        edit_of({**texts_of(FULL), field: value})
    (tmp_path / "edits.jsonl").write_text(json.dumps({"id": 0, **texts_of(FULL), field: value}) + "\n")
    with pytest.raises(CheckpointError, match="line 1"):
        read_edits(tmp_path / "edits.jsonl")


def test_a_row_of_a_file_that_may_not_stand_there_is_named(tmp_path):
    row = {"prompt": "The sky is", "target": "green", "author": "Jo", "source": "a wire", "taught_at": 7}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row | {"author": "J\u202eo"}) + "\n")
    rows = read_cases(tmp_path / "rows.jsonl")
    edit = next(rows).edit
    assert (edit.author, edit.source, edit.taught_at) == ("Jo", "a wire", None), "elsewhere, it is taught anew"
    with pytest.raises(ValueError, match=r"line 2 \(row 2\): an edit's author must be printable"):
        next(rows)


def test_it_is_kept_by_journal_snapshot_and_a_second_lesson(tiny_llama, tiny_tokenizer, tmp_path, monkeypatch):
    clock = iter([1000.0, 10.0])  # it is set back in between
    with Memoir.open(tiny_llama, tiny_tokenizer, tmp_path / "memory", CONFIG) as memoir:
        before = time.time()
        memoir.edit(Edit("The sky is", "green", author="Jo", source="a wire"))
        assert before <= memoir.edits[0].taught_at <= time.time()
        with monkeypatch.context() as patch:
            patch.setattr("memoir_fast.core.live_edits.time", type("Clock", (), {"time": lambda: next(clock)}))
            memoir.edit([("The river is", "wide"), ("The town is", "old")], progress=False)
        memoir.edit(memoir.edits[1])
        memoir.edit("The town is", "new")
        assert memoir.edits[1].taught_at == 1000.0, "taught again, it is the same correction"
        assert memoir.edits[2].taught_at > before, "and this one is another"
        expected = whole(memoir.edits)
        assert expected[0][5:7] == ("Jo", "a wire")
        assert whole(durable.current_edits(tmp_path / "memory")[1]) == expected
        memoir.detach()
    again = Memoir.from_pretrained(tiny_llama, tiny_tokenizer, tmp_path / "memory")
    assert whole(again.edits) == expected
    again.save_pretrained(tmp_path / "memory")
    assert whole(checkpoint.read(tmp_path / "memory").edits) == expected
    assert whole(durable.current_edits(tmp_path / "memory")[1]) == expected


def test_folders_without_the_fields_are_read(tiny_llama, tiny_tokenizer, tmp_path, monkeypatch):
    """As earlier releases wrote them: a record of theirs has a time, an edit of a snapshot none."""
    new, real = ("author", "source", "taught_at"), changes.edited

    def earlier(*arguments):
        kind, values, tensors = real(*arguments)
        return kind, {name: value for name, value in values.items() if name not in new} | {"time": 77.0}, tensors

    monkeypatch.setattr(changes, "edited", earlier)
    monkeypatch.setattr(checkpoint, "texts_of", lambda edit: {"prompt": edit.prompt, "target": edit.target})
    with Memoir.open(tiny_llama, tiny_tokenizer, tmp_path / "memory", CONFIG) as memoir:
        memoir.edit("The sky is", "green")
        memoir.save_pretrained(tmp_path / "memory")
        memoir.edit("The river is", "wide")
        memoir.detach()
    again = Memoir.from_pretrained(tiny_llama, tiny_tokenizer, tmp_path / "memory")
    assert [edit.taught_at for edit in again.edits.values()] == [None, 77.0]
    assert again.edits == memoir.edits


def test_an_edit_longer_than_the_context_is_refused_wherever_it_comes_from(memoir, saved, tiny_tokenizer):
    """As where settings of the model, or the file, were changed by hand: `faded` could not ask it."""
    model, match = memoir.model, r"memory holds an edit that the model cannot take, 2: .*the model's context holds 8"
    lasting, before = checkpoint.read(saved), renewal.state(memoir)
    model.config.max_position_embeddings = 8
    for take in (lambda: memoir.merge(saved), lambda: renewal.beside(memoir, lasting, [])):
        with pytest.raises(CheckpointError, match=match):
            take()
    assert renewal.state(memoir) == before
    memoir.detach()
    for load in (Memoir.from_pretrained, Memoir.open):
        with pytest.raises(CheckpointError, match=match):
            load(model, tiny_tokenizer, saved)
    model.config.max_position_embeddings = 256
    with Memoir.open(model, tiny_tokenizer, saved) as opened:
        assert sorted(opened.edits) == [0, 2]
