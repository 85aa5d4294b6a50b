"""Some of the kills of `tools/kill_every_call.py`, and that it would notice a loss or a leftover."""

import os

import pytest

from memoir_fast import atomic
from memoir_fast.io import checkpoint, durable


@pytest.fixture
def killer(tool, tmp_path, caplog):
    caplog.set_level("ERROR", logger="memoir_fast")
    return tool("kill_every_call").Killer(tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_some_kills_of_each_change_lose_nothing(tool, killer):
    for change in tool("kill_every_call").CHANGES:
        kills, _ = killer.kill(change, 19 if change in ("save", "renew", "merge") else 10)
        assert kills or change in ("delete", "delete a bank", "open")


def index_first(folder, data, index, content, owned):
    """What `atomic.publish` must not do."""
    before = os.listdir(folder)
    atomic.replace(folder / index, content)
    for name, value in data.items():
        atomic.replace(folder / name, value)
    for name in before:
        if owned.fullmatch(name):
            (folder / name).unlink()


@pytest.mark.filterwarnings("ignore")
def test_losses_and_leftovers_are_noticed(killer, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "publish", index_first)
        with pytest.raises(AssertionError, match="damaged: .* is missing"):
            killer.kill("merge")
    with monkeypatch.context() as patch:
        patch.setattr(durable, "clear", lambda *_: None)
        with pytest.raises(AssertionError, match=r"save, killed at call .*: \['.memory-.*tmp'\] are left over"):
            killer.kill("save")
