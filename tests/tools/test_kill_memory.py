"""`tools/kill_memory.py`: a kill loses nothing that was acknowledged, and the tool would notice."""

import json

import pytest


@pytest.mark.slow
def test_few_kills_lose_nothing(tool, capsys):
    assert tool("kill_memory").main(["--kills", "1", "--seed", "5"]) == 0
    assert "1 kills, " in capsys.readouterr().out


def test_a_loss_is_noticed(tool, tmp_path, monkeypatch, capsys):
    kill_memory = tool("kill_memory")
    said = [["edited", 0, 0], ["edited", 1, 1], ["deleting", 0]]
    monkeypatch.setattr(kill_memory, "_killed", lambda *_: (json.loads(json.dumps(said)), 0))
    assert kill_memory.main(["--kills", "1"]) == 1
    assert "1 kills, 2 acknowledged changes, 1 lost" in capsys.readouterr().out
