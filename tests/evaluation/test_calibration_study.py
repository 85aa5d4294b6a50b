"""The study of the chosen threshold in docs/results: its statistics and its table."""

import importlib.util
from pathlib import Path

import pytest
import torch

from memoir_fast import Memoir, MemoirConfig

SCRIPT = Path(__file__).parents[2] / "docs" / "results" / "calibration.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("calibration_study", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("count", "total", "low", "high"), [(0, 1000, 0.0, 0.003827), (10, 100, 0.055229, 0.174366), (5, 5, 0.565518, 1.0)]
)
def test_interval(script, count, total, low, high):
    assert script.wilson(count, total) == pytest.approx((low, high), abs=2e-5)


def test_sentences(script):
    heading = " = Heading of five words here = \n \n"
    text = heading + " It weighs 2 @.@ 7 kg ( 6 lb ) , at most . Too short . A <unk> is left out . \n"
    assert script.sentences(text * 2) == ["It weighs 2.7 kg (6 lb), at most."]


@pytest.mark.filterwarnings("ignore:paraphrases and irrelevant prompts")
def test_counts_by_hand(script, tiny_llama, tiny_tokenizer, monkeypatch):
    """Two edits: a paraphrase is the edit itself, another is its neighbour's; what is not stored matches nothing."""
    memoir = Memoir.attach(tiny_llama, tiny_tokenizer, MemoirConfig(background=8, k=12, routing="paper"))
    tophash = memoir.layer.tophash
    tophash.permutation.copy_(torch.arange(48))
    bands = torch.zeros(4, 48)
    for row in range(4):
        bands[row, 12 * row : 12 * row + 12] = 1.0
    hashed = script.Hashed(*tophash.hash(bands))
    rows = {"ZsRE": [0, 1, 2], "ZsRE paraphrases": [0, 0, 2], "background": [3] * 20}
    groups = {name: script.Hashed(hashed.masks[chosen], hashed.columns[chosen]) for name, chosen in rows.items()}
    unrelated = {"far": hashed.masks[[3, 3]], "near": hashed.masks[[0, 3, 1]]}
    found = script.count_out(memoir, groups, "ZsRE", torch.tensor([0, 1]), unrelated)
    assert found["matched"] == {"far": [0, 2], "near": [2, 3]} and found["edits"] == 2
    assert (found["paraphrases"], found["own"]) == (1.0, 0.5)
    assert found["needed_tau"] == pytest.approx(13 / 12)  # one of the unrelated is an edit: no threshold keeps it out
    assert found["paraphrases_at_needed"] == 0.0


def test_table(script, monkeypatch):
    draw = {"store": "ZsRE", "edits": 16, "tau": 0.4, "paraphrases": 1.0, "own": 0.5}
    draw |= {"needed_tau": 0.45, "paraphrases_at_needed": 0.75}
    matched = {"loc": [1, 1000], script.OTHER: [4, 1000], script.SEEN: [9, 9], script.SAME: [8, 8]}
    second = {**matched, "loc": [2, 1000]}
    monkeypatch.setattr(script, "STORED", (16,))
    (row,) = rows = script.summarised([{**draw, "matched": matched}, {**draw, "tau": 0.5, "matched": second}], "ZsRE")
    assert row["tau"] == pytest.approx(0.45)
    assert row["matched"][script.TEXT] == (1.5, 1000) and row["matched"][script.UNSEEN] == (5.5, 2000)
    lines = script.markdown(rows).splitlines()
    assert lines[0] == "| | 16 |" and lines[3].startswith("| loc (1,000) | 1.5 (0.")
    assert "| paraphrases that match, % | 100.0 |" in lines
