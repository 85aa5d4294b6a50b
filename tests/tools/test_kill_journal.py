"""A few of the kills that `tools/kill_journal.py` does by the thousand, and that it would notice a loss."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_twenty_kills():
    command = [sys.executable, str(ROOT / "tools/kill_journal.py"), "--kills", "20", "--seed", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) records acknowledged in \d+ journals, none lost", done.stdout)[1]) > 0


def test_losses_are_noticed(tool, tmp_path):
    kills = tool("kill_journal")
    from memoir_fast.io.journal import Journal, read
    from memoir_fast.io.writer_lock import WriterLock

    with WriterLock(tmp_path) as lock, Journal(lock, "ab" * 32) as journal:
        while journal.sequence < 10:
            first = journal.sequence + 1
            journal.append_all([kills.entry(0, first + place) for place in range(kills.groups(0, first))])
        found = list(read(journal.path))
    kills.require_all(found, 0, len(found))
    with pytest.raises(AssertionError, match="records were acknowledged"):
        kills.require_all(found, 0, len(found) + 1)
    with pytest.raises(AssertionError, match="is not what was appended"):
        kills.require_all([found[1], *found[1:]], 0, len(found))
    ends = [size for size in range(1, len(found)) if kills.groups(0, size) == 3]  # after the first of three
    with pytest.raises(AssertionError, match="in the middle of a group"):
        kills.require_all(found[: ends[0]], 0, 0)
