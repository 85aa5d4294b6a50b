"""The study of kept prompts in docs/results: what an edit keeps is left alone, whatever the model."""

import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "docs" / "results" / "kept.py"


@pytest.mark.filterwarnings("ignore:paraphrases and irrelevant prompts can hardly be told apart")
def test_every_kept_question_is_left_alone(model_folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["kept.py", "--model", model_folder, "--facts", "4"])
    monkeypatch.syspath_prepend(SCRIPT.parent)
    runpy.run_path(str(SCRIPT), run_name="__main__")
    neither, kept, subject, both = capsys.readouterr().out.splitlines()[-4:]
    assert neither.startswith("| neither | ") and " of 3 | " in neither
    assert kept.startswith("| with `keep` | 3 of 3 |") and "| 4 of 4 |" in kept
    assert subject.startswith("| with `subject` | 3 of 3 | 6 of 6 | 4 of 4 |"), "none of these is named"
    assert both.startswith("| with both | 3 of 3 | 6 of 6 | 4 of 4 |")
