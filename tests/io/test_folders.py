"""Where a memory's folder is: names that are none, a process that goes elsewhere, a folder that is moved."""

import copy
import os
import shutil

import pytest

from memoir_fast import Memoir
from memoir_fast.errors import CheckpointError, LockedError
from memoir_fast.io.folders import local, named


@pytest.mark.parametrize("name", ["x" * 300, "/".join(["deep"] * 2000), "nothing\0there"])
def test_a_name_that_nothing_can_have_is_refused(memoir, tiny_llama, tiny_tokenizer, name):
    memoir.detach()
    for act in (Memoir.open, Memoir.from_pretrained):
        with pytest.raises(CheckpointError, match="cannot be a memory's folder"):
            act(tiny_llama, tiny_tokenizer, name)
    memoir = Memoir.attach(tiny_llama, tiny_tokenizer)
    with pytest.raises(CheckpointError, match="cannot be a memory's folder"):
        memoir.save_pretrained(name)


def test_no_name_is_not_the_folder_at_hand(memoir, tiny_llama, tiny_tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="must have a name, got ''"):
        memoir.save_pretrained("")
    memoir.detach()
    for act in (Memoir.open, Memoir.from_pretrained):
        with pytest.raises(ValueError, match="must have a name, got ''"):
            act(tiny_llama, tiny_tokenizer, "")
    assert os.listdir(tmp_path) == []


def test_names(tmp_path):
    (tmp_path / "file").touch()
    assert named(tmp_path / "new") == tmp_path / "new" and named(tmp_path / "file" / "in") and local(tmp_path, {})
    with pytest.raises(CheckpointError, match="is no folder"):
        local(tmp_path / "file", {})


@pytest.fixture
def pair(memoir, saved, tiny_tokenizer, monkeypatch):
    """The folder's writer and a reader, which were given its relative name; the process is elsewhere now."""
    monkeypatch.chdir(saved.parent)
    reader, plain = memoir, copy.deepcopy(memoir).detach()
    reader = Memoir.from_pretrained(reader.detach(), tiny_tokenizer, saved.name)
    with Memoir.open(plain, tiny_tokenizer, saved.name) as writer:
        (saved.parent / "elsewhere").mkdir()
        monkeypatch.chdir(saved.parent / "elsewhere")
        yield writer, reader


def test_a_process_may_go_to_another_folder(pair, saved):
    writer, reader = pair
    writer.delete(0)
    assert reader.reload().deleted == [0] and writer.undo().added == [0] and reader.reload().added == [0]
    writer.save_pretrained(saved)
    writer.delete(2)
    assert reader.reload().deleted == [2] and os.listdir() == []


def test_nothing_is_written_where_a_folder_was_that_was_moved(pair, saved):
    """Another may be there, and somebody be writing to it."""
    writer, reader = pair
    reader.delete(0)
    reader.save_pretrained(other := saved.with_name("other"))
    writer.delete(2)
    os.rename(saved, moved := saved.with_name("moved"))
    shutil.copytree(other, saved)
    there = {path.name: path.read_bytes() for path in saved.iterdir()}
    for act in (
        lambda: writer.delete(0),
        writer.undo,
        lambda: writer.merge(other),
        lambda: writer.save_pretrained(saved),
    ):
        with pytest.raises(LockedError, match="was moved"):
            act()
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == there and list(writer.edits) == [0]
    writer.close()
    assert reader.reload(discard=True).deleted == []
    shutil.rmtree(saved)
    os.rename(moved, saved)
    assert reader.reload().deleted == [2]
