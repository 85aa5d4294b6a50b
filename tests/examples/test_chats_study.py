"""The study of chats in docs/results: what it counts agrees with what was said."""

import json
import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "docs" / "results" / "chats.py"
ROWS = [
    {
        "subject": "Italy",
        "src": "What is the capital of Italy?",
        "rephrase": "Italy's capital, what is it?",
        "alt": "Bo",
    },
    {"subject": "Greek", "src": "Who speaks Greek on the island?", "rephrase": "Greek is spoken by whom?", "alt": "Al"},
]


@pytest.mark.filterwarnings("ignore:paraphrases and irrelevant prompts can hardly be told apart")
def test_figures_are_those_of_the_answers(model_folder, tmp_path, monkeypatch):
    common = {"pred": "x", "loc": "nq question: who?", "loc_ans": "y", "cond": "x >> y || z"}
    (tmp_path / "rows.json").write_text(json.dumps([{**common, **row} for row in ROWS]))
    (tmp_path / "irrelevant.txt").write_text("Which animal lives in the desert?\nThe river runs through\n")
    arguments = ["--model", model_folder, "--data", str(tmp_path / "rows.json"), "--questions", "2"]
    arguments += ["--irrelevant", str(tmp_path / "irrelevant.txt"), "--json", str(tmp_path / "found.json")]
    monkeypatch.setattr(sys, "argv", ["chats.py", *arguments])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    found = json.loads((tmp_path / "found.json").read_text())
    assert len({(row["taught"], row["asked"]) for row in found}) == len(found) == 6
    for row in found:
        begun = [text.strip().startswith(one["alt"]) for text, one in zip(row["answers"], ROWS, strict=True)]
        assert row["said"] <= sum(begun) / 2 and 0 <= row["irrelevant"] <= 2
    told = {(row["taught"], row["asked"]): row for row in found}
    for same in ("plainly", "in a chat"):
        assert told[same, same]["own"] == told[same, same]["said"] == 1.0
