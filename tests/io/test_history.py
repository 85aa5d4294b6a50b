"""What ever happened, beyond the snapshots: nothing twice, nothing gone, whatever comes in between."""

import dataclasses
import hashlib
import json
import os
import shutil

import pytest

from memoir_fast import RECIPES, Memoir, MemoirConfig
from memoir_fast.errors import CheckpointError
from memoir_fast.io import durable, history, rewrite
from memoir_fast.io.history import HISTORY_NAME, History, happened, keep
from memoir_fast.io.journal import read
from memoir_fast.io.repair import repair

SNAPSHOT = hashlib.sha256(b"a snapshot").hexdigest()
RECIPE = dataclasses.replace(RECIPES["fast"], prefixes=0, rewordings=0, questions=0, steps=1)
CONFIG = MemoirConfig(recipe=RECIPE, tau=0.9, k=16, background=8, routing="paper")


def delete(number):
    return "delete", {"ids": [number], "time": float(number)}, {}


def ids(folder, journal=None):
    return [line["ids"][0] for line in happened(History(folder), journal and read(journal.path)) if "ids" in line]


def put_by(journal):
    with read(journal.path) as reader:
        return keep(journal.path.parent, reader)


@pytest.fixture
def kept(journal):
    """A journal of three records whose first two are in the history."""
    journal.append_all([delete(0), delete(1)])
    assert put_by(journal) == 2
    journal.append(*delete(2))
    return journal


def test_each_record_is_told_once(kept, tmp_path):
    assert ids(tmp_path) == [0, 1] and ids(tmp_path, kept) == [0, 1, 2]
    assert put_by(kept) == 1 and put_by(kept) == 0
    assert ids(tmp_path) == ids(tmp_path, kept) == [0, 1, 2]


def test_what_a_journal_copied_before_an_undo_is_told_once(kept, lock, tmp_path):
    put_by(kept)
    undone = history.undone([history.told(one) for one in read(kept.path)][1:])
    rewrite.write(lock, SNAPSHOT, [[delete(0)], [("undo", {"time": 9.0, **undone}, {})], [delete(3)]])
    lines = list(happened(History(tmp_path), read(kept.path)))
    assert [line.get("ids", line["kind"]) for line in lines] == [[0], [1], [2], "undo", [3]]
    assert lines[3]["count"] == 2 and [one["ids"] for one in lines[3]["undone"]] == [[1], [2]]
    with read(kept.path) as reader:
        assert keep(tmp_path, reader) == 2
    assert list(happened(History(tmp_path), None)) == lines


@pytest.mark.parametrize("cut", [1, 30, 100])
def test_a_torn_end_is_cut_off_and_put_down_again(kept, tmp_path, cut):
    put_by(kept)
    path = tmp_path / HISTORY_NAME
    path.write_bytes(path.read_bytes()[:-cut])
    assert ids(tmp_path, kept) == [0, 1, 2]
    assert put_by(kept) == 1
    assert ids(tmp_path) == [0, 1, 2] and History(tmp_path).unreadable == 0


def test_blocks_that_never_reached_the_disk_are_put_down_again(kept, tmp_path):
    """After a power cut, a file may have zeros where an earlier part of what was appended should be."""
    put_by(kept)
    path = tmp_path / HISTORY_NAME
    first, second, third = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + b"\0" * len(second) + third)
    assert put_by(kept) == 2, "zeros and the next line are one that cannot be read"
    reader = History(tmp_path)
    assert sorted(line["ids"][0] for line in reader) == [0, 1, 2] and reader.unreadable == 1


def test_a_full_disk_leaves_what_was_told(kept, tmp_path, monkeypatch):
    before = (tmp_path / HISTORY_NAME).read_bytes()

    def full(descriptor):
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(CheckpointError, match=r"history\.jsonl cannot be written: .*No space left"):
            put_by(kept)
    assert (tmp_path / HISTORY_NAME).read_bytes() == before
    assert put_by(kept) == 1


def test_a_damaged_journal_is_put_by_as_far_as_it_goes(kept, tmp_path, caplog):
    content = bytearray(kept.path.read_bytes())
    place = content.rindex(b'"ids":[1]') + 7
    content[place] ^= 1
    kept.path.write_bytes(content)
    (tmp_path / HISTORY_NAME).unlink()
    assert put_by(kept) == 0
    assert "tells what comes before the damage alone" in caplog.text


@pytest.mark.parametrize(
    "line",
    [
        b"no JSON",
        b"[1]",
        b'{"journal": 7, "sequence": 1, "kind": "edit"}',
        b'{"journal": "x", "sequence": true, "kind": "edit"}',
        b'{"journal": "x", "sequence": 1, "kind": ["edit"]}',
        b'{"journal": "x", "sequence": 1, "kind": "edit", "kind": "delete"}',
        b"[" * 70_000,
        b'{"journal": "x", "sequence": 1, "kind": "edit", "prompt": "' + b"x" * 300_000 + b'"}',
        b'{"journal": "x", "sequence": 1, "kind": "edit", "time": NaN}',
        b"\xff\xfe",
    ],
    ids=range(10),
)
def test_lines_that_a_stranger_wrote_are_left_out(kept, tmp_path, line):
    with open(tmp_path / HISTORY_NAME, "ab") as file:
        file.write(line + b"\n")
    reader = History(tmp_path)
    assert [one["ids"] for one in reader] == [[0], [1]] and reader.unreadable == 1
    assert ids(tmp_path, kept) == [0, 1, 2]


def test_values_that_a_stranger_wrote_are_cut_or_left_out(tmp_path):
    odd = [
        {"kind": "edit", "id": "x", "prompt": ["p"], "target": "y" * 1000, "time": "now", "bank": 7, "sequence": 2},
        {"kind": "delete", "ids": list(range(1000)), "time": True, "sequence": 3},
        {"kind": "delete", "ids": "all", "sequence": 4},
        {"kind": "calibration", "tau": "much", "sequence": 5},
        {"kind": "undo", "undone": [7, {"kind": "undo"}, {"kind": "edit", "prompt": "z" * 99}], "sequence": 6},
    ]
    (tmp_path / HISTORY_NAME).write_text("".join(json.dumps({"journal": "x" * 99, **one}) + "\n" for one in odd))
    edit, some, none, threshold, undo = History(tmp_path)
    assert edit["id"] is edit["time"] is None and len(edit["target"]) == 200 and not {"prompt", "bank"} & set(edit)
    assert len(edit["journal"]) == 32
    assert len(some["ids"]) == 100 and some["count"] == 1000 and some["time"] is None
    assert none["ids"] == [] and threshold["tau"] is None
    assert [len(one["prompt"]) for one in undo["undone"]] == [80]


@pytest.mark.parametrize("kind", ["pipe", "folder", "link"])
def test_no_file_is_no_history(kept, tmp_path, kind):
    path = tmp_path / HISTORY_NAME
    path.rename(tmp_path / "elsewhere")
    {"pipe": lambda: os.mkfifo(path), "folder": path.mkdir, "link": lambda: path.symlink_to("elsewhere")}[kind]()
    before = (tmp_path / "elsewhere").read_bytes()
    with pytest.raises(CheckpointError, match=r"history\.jsonl cannot be"):
        put_by(kept)
    assert (tmp_path / "elsewhere").read_bytes() == before


def test_none_is_made_where_there_is_nothing_to_tell(journal, tmp_path):
    assert put_by(journal) == 0 and not (tmp_path / HISTORY_NAME).exists()
    assert list(happened(History(tmp_path), None)) == []


@pytest.fixture
def opened(tiny_llama, tiny_tokenizer, tmp_path):
    with Memoir.open(tiny_llama, tiny_tokenizer, tmp_path / "memory", CONFIG) as memoir:
        memoir.edit([("The sky is", "green"), ("The town is", "old")], progress=False)
        memoir.delete(0)
        yield memoir


def kinds(folder):
    return [line["kind"] for line in happened(History(folder), durable.read_pair(folder)[1])]


def test_a_snapshot_s_records_stay_in_the_history(opened, tmp_path, tiny_tokenizer):
    folder = tmp_path / "memory"
    opened.save_pretrained(folder)
    opened.edit("The river is", "wide")
    assert kinds(folder) == ["edit", "edit", "delete", "edit"]
    opened.close()
    opened.save_pretrained(folder)  # as one who has not opened it
    assert kinds(folder) == ["edit", "edit", "delete", "edit"] and not list(folder.glob("journal-*"))
    model = opened.detach()
    with Memoir.open(model, tiny_tokenizer, folder) as memoir:
        memoir.delete(1)
        assert kinds(folder) == ["edit", "edit", "delete", "edit", "delete"]


def test_a_repaired_folder_has_it_too(opened, tmp_path):
    folder, repaired = tmp_path / "memory", tmp_path / "repaired"
    opened.save_pretrained(folder)
    opened.edit("The river is", "wide")
    repair(folder, repaired)
    assert kinds(repaired) == ["edit", "edit", "delete", "edit"]
    (folder / HISTORY_NAME).unlink()
    os.mkfifo(folder / HISTORY_NAME)
    repair(folder, tmp_path / "again")
    assert kinds(tmp_path / "again") == ["edit"]


@pytest.mark.parametrize("call", range(12))
def test_a_snapshot_that_fails_at_any_sync_loses_and_doubles_nothing(opened, tmp_path, monkeypatch, call):
    folder, calls = tmp_path / "memory", []

    def full(descriptor, sync=os.fsync):
        calls.append(descriptor)
        if len(calls) == call + 1:
            raise OSError(28, os.strerror(28))
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        try:
            opened.save_pretrained(folder)
            assert call >= 10
        except CheckpointError:
            assert call < 11
    assert kinds(folder) == ["edit", "edit", "delete"]
    model, tokenizer = opened.detach(), opened.tokenizer
    with Memoir.open(model, tokenizer, folder) as memoir:
        assert memoir.edits == opened.edits
        memoir.save_pretrained(folder)
        assert kinds(folder) == ["edit", "edit", "delete"] and memoir._durable.journal.sequence == 0


def test_a_snapshot_that_is_killed_at_any_call_loses_and_doubles_nothing(opened, tmp_path, dies_after):
    folder, model, tokenizer = tmp_path / "memory", opened.detach(), opened.tokenizer
    codes = []
    for last in range(30):
        copy = tmp_path / str(last)
        shutil.copytree(folder, copy)

        def snapshot(copy=copy):
            with Memoir.open(model, tokenizer, copy) as memoir:
                memoir.save_pretrained(copy)

        codes.append(dies_after(last, snapshot))
        saved, edits, since = durable.current_edits(copy)
        assert edits == opened.edits and since in (0, 3)
        assert kinds(copy) == ["edit", "edit", "delete"]
        if codes[-1] == 0:
            break
        if last % 3:
            continue
        with Memoir.open(model, tokenizer, copy) as memoir:
            assert memoir.edits == opened.edits
            memoir.save_pretrained(copy)
            memoir.detach()
        assert kinds(copy) == ["edit", "edit", "delete"] and not list(copy.glob(".*"))
    assert codes == [9] * (len(codes) - 1) + [0] and len(codes) > 12
