"""`tools/soak.py`: a few seconds of what it does for half an hour, and that it would notice what goes wrong."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_a_few_seconds():
    command = [sys.executable, str(ROOT / "tools/soak.py"), "--minutes", "0.04", "--period", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no answer was wrong" in done.stdout
    *_, last = re.findall(r"(\d+) operations, (\d+) generations, (\d+) loads beside", done.stdout)
    assert min(map(int, last[:2])) > 0


def test_what_grows_is_noticed(tool):
    soak = tool("soak")
    first = soak.Size(memory=1 << 30, files=1000, descriptors=9)
    assert first.grown_beyond(first) == []
    large = soak.Size(memory=2 << 30, files=soak.MORE_FILES + 1001, descriptors=99)
    assert [one.split()[0] for one in large.grown_beyond(first)] == ["memory", "files", "descriptors"]


@pytest.fixture
def memory(tool, tmp_path):
    soak = tool("soak").Soak(tmp_path / "memory", 1, 0)
    soak.memoir.edit(soak.prompts[0], "Rome")
    yield soak
    soak.memoir.detach()


def test_another_edits_answer_is_noticed(tool, memory):
    memory._look(memory.prompts[0])
    with memory.memoir.routed(-1), pytest.raises(tool("soak").Wrong, match="followed -1, its edit is 0"):
        memory._look(memory.prompts[0])


def test_an_answer_that_is_no_more_the_models_own_is_noticed(tool, memory):
    memory._look(tool("soak").UNRELATED)
    memory.plain = [1]
    with pytest.raises(tool("soak").Wrong, match="follows no edit"):
        memory._look(tool("soak").UNRELATED)


def test_a_change_meanwhile_is_no_error(memory):
    with memory.memoir.routed(-1), memory.changing(memory.prompts[0]):
        memory._look(memory.prompts[0])
