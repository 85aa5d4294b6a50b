"""`tools/kill_memory.py`: a kill loses nothing that was acknowledged, and the tool would notice."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_few_kills_lose_nothing():
    command = [sys.executable, str(ROOT / "tools/kill_memory.py"), "--kills", "6", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    counted = re.search(
        r"6 kills, 1 of them of repairs.*; (\d+) changes acknowledged in 1 folders, none lost", done.stdout
    )
    assert int(counted[1]) > 0


BEFORE, ONE, TWO = {"a": "x"}, {"a": "x", "b": "y"}, {"b": "y"}
SAID = [["is", BEFORE], ["to", ONE], ["is", ONE], ["to", TWO]]


@pytest.mark.parametrize("there", [ONE, TWO])
def test_what_was_acknowledged_or_under_way_may_be_there(tool, there):
    tool("kill_memory").require_one_of(there, BEFORE, SAID)


@pytest.mark.parametrize(
    ("there", "before", "said", "reason"),
    [
        (BEFORE, BEFORE, SAID, "the folder holds"),  # an edit is lost
        (ONE | {"c": "z"}, BEFORE, SAID, "the folder holds"),
        (ONE, BEFORE, [*SAID, ["is", TWO]], "the folder holds"),  # a deletion is lost
        (ONE, {}, SAID, "opened, it holds"),
        (BEFORE, BEFORE, [["is", BEFORE], ["to", ONE], ["is", BEFORE]], "it was to hold"),
        (ONE, BEFORE, [], "the folder holds"),
    ],
)
def test_a_loss_is_noticed(tool, there, before, said, reason):
    with pytest.raises(AssertionError, match=reason):
        tool("kill_memory").require_one_of(there, before, said)


def test_half_a_repair_is_noticed(tool, tmp_path, monkeypatch):
    kills, folder = tool("kill_memory"), tmp_path / "root" / "memory"
    folder.mkdir(parents=True)
    (folder / "edits").write_text("edits")

    def half(*_):
        (folder.parent / "damaged" / "edits").write_text("changed")

    monkeypatch.setattr(kills, "kill_one", half)
    with pytest.raises(AssertionError, match="more than its own folder"):
        kills.kill_a_repair(folder, {}, kills.random.Random(0))
