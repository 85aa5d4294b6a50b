"""`bench/stream.py`: a stream of edits that goes on where it was stopped."""

import dataclasses
import json

import pytest

from memoir_fast import RECIPES, Memoir

ROWS = [
    {"prompt": f"The number {number} is", "target": ["Rome", "camel"][number % 2], "paraphrases": [f"{number} is"]}
    for number in range(7)
]


@pytest.fixture
def files(tmp_path, tiny_llama, tiny_tokenizer, monkeypatch):
    easy = dataclasses.replace(RECIPES["fast"], steps=2, prefixes=0, rewordings=0, questions=0)
    monkeypatch.setitem(RECIPES, "fast", easy)
    tiny_llama.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    for name, rows in (("a", ROWS[:4]), ("b", [ROWS[3], *ROWS[4:], {"prompt": "", "target": "x"}])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_it_goes_on_where_it_was_stopped(bench, files, monkeypatch):
    stream = bench("stream")
    arguments = ["--model", str(files / "model"), "--folder", str(files / "run"), "--edits", "6", "--marks", "2", "4"]
    arguments += ["--data", str(files / "a.jsonl"), "--data", str(files / "b.jsonl")]
    measured = stream.measured

    def stopped(memoir, cases):
        if len(cases) == 4:
            raise KeyboardInterrupt
        return measured(memoir, cases)

    with monkeypatch.context() as patch:
        patch.setattr(stream, "measured", stopped)
        with pytest.raises(KeyboardInterrupt):
            stream.main(arguments)
    assert [one["edits"] for one in json.loads((files / "run/stream.json").read_text())] == [2]
    taught, edits = [], Memoir.edit_stream

    def noted(memoir, wanted, **options):
        taught.extend(wanted)
        return edits(memoir, wanted, **options)

    monkeypatch.setattr(Memoir, "edit_stream", noted)
    assert stream.main([*arguments, "--refresh"]) == 0
    stream_taught = [edit.prompt for edit in taught[:2]]  # behind them stand those that refresh teaches again
    assert stream_taught == [row["prompt"] for row in ROWS[4:6]], "the others are in the journal"
    found = json.loads((files / "run/stream.json").read_text())
    assert [one["edits"] for one in found] == [2, 4, 6, 6] and found[2]["pages"] == 1 and len(found[2]["hundreds"]) == 1
    assert ["refreshed" in one for one in found] == [False, False, False, True]
    assert all(0 <= one["reliability"] <= 1 and 0 <= one["generalization"] <= 1 for one in found)
    assert all(one["generalization_given"] is not None for one in found)
    assert (files / "run/stream.png").stat().st_size > 1000
