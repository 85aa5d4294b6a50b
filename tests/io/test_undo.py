"""What taking changes back does to a folder's files, without a model: wholly or not at all, whenever it ends."""

import hashlib
import json

import pytest
import torch

from memoir_fast.errors import CheckpointError, LockedError, MemoirError
from memoir_fast.io import checkpoint, history, undo
from memoir_fast.io.history import History, happened
from memoir_fast.io.journal import Journal, journal_path, read
from memoir_fast.io.writer_lock import WriterLock

SNAPSHOT = hashlib.sha256(b"a snapshot").hexdigest()


def delete(*numbers):
    return "delete", {"ids": list(numbers), "time": float(numbers[0])}, {"x": torch.arange(numbers[0] + 1)}


def threshold(tau):
    return "calibration", {"tau": tau, "time": 0.5}, {}


def fill(folder):
    """Four appends, of which the third is two records."""
    with WriterLock(folder) as lock, Journal(lock, SNAPSHOT) as journal:
        for entries in ([delete(0)], [delete(1, 2)], [delete(3), threshold(0.75)], [delete(4)]):
            journal.append_all(entries)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "checksum_of", lambda _: SNAPSHOT)
    fill(tmp_path)
    return tmp_path


def there(folder):
    """What the journal holds, its undoings told by their count."""
    with read(journal_path(folder, SNAPSHOT), SNAPSHOT) as reader:
        return [[one.values.get("ids") or one.values.get("tau") or one.values["count"] for one in some]
                for some in reader.appends()]  # fmt: skip


def told(folder):
    with read(journal_path(folder, SNAPSHOT), SNAPSHOT) as reader:
        return [line.get("ids") or line.get("tau") or line["kind"] for line in happened(History(folder), reader)]


ALL = [[0], [1, 2], [3], 0.75, [4]]


@pytest.mark.parametrize(
    ("count", "left"), [(1, [[[0]], [[1, 2]], [[3], 0.75]]), (2, [[[0]], [[1, 2]]]), (4, [])], ids=["one", "two", "all"]
)
def test_a_change_is_what_was_put_down_at_once(folder, count, left):
    taken = undo.undo(folder, count)
    gone = ALL[sum(map(len, left)) :]
    assert [one.get("ids") or one["tau"] for one in taken] == gone
    assert there(folder) == [*left, [len(gone)]] and told(folder) == [*ALL, "undo"]
    tensors = [one.tensors["x"].tolist() for one in read(journal_path(folder, SNAPSHOT)) if one.kind == "delete"]
    assert tensors == [list(range(numbers[0] + 1)) for some in left for numbers in some if isinstance(numbers, list)]


def test_one_after_another_and_what_comes_in_between(folder):
    undo.undo(folder)
    undo.undo(folder)
    with WriterLock(folder) as lock, Journal(lock, SNAPSHOT) as journal:
        journal.append(*delete(7))
    assert there(folder) == [[[0]], [[1, 2]], [2], [[7]]]
    undo.undo(folder, 2)
    assert there(folder) == [[[0]], [2]]
    assert told(folder) == [*ALL, "undo", "undo", [7], "undo"]
    with pytest.raises(MemoirError, match="2 changes were to be taken back, the journal .* has 1"):
        undo.undo(folder, 2)
    with read(journal_path(folder, SNAPSHOT)) as reader, WriterLock(folder):
        assert history.keep(folder, reader) == 1


@pytest.mark.parametrize("count", [0, -1, True, "2", 1.0])
def test_no_number_of_changes(folder, count):
    with pytest.raises(ValueError, match="n must be a whole number of at least 1"):
        undo.undo(folder, count)


def test_whoever_has_it_open_keeps_it(folder):
    with WriterLock(folder), pytest.raises(LockedError):
        undo.undo(folder)
    assert told(folder) == ALL


def test_a_damaged_journal_is_not_undone(folder):
    path = journal_path(folder, SNAPSHOT)
    content = bytearray(path.read_bytes())
    content[content.index(b'"ids":[1,2]') + 7] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        undo.undo(folder)
    assert path.read_bytes() == content and not (folder / history.HISTORY_NAME).exists()


def test_a_torn_end_was_never_acknowledged_and_is_no_change(folder):
    path = journal_path(folder, SNAPSHOT)
    path.write_bytes(path.read_bytes()[:-3])
    assert [one.get("ids") for one in undo.undo(folder)] == [[3], None]
    assert there(folder) == [[[0]], [[1, 2]], [2]]


def test_many_changes_are_told_by_the_last_and_their_number(folder):
    with WriterLock(folder) as lock, Journal(lock, SNAPSHOT) as journal:
        for number in range(100):
            edit = {"id": number, "prompt": "\u00e9" * 5000, "target": "x" * 5000, "source": "y" * 2000}
            journal.append("edit", edit)
    undo.undo(folder, 100)
    with read(journal_path(folder, SNAPSHOT)) as reader, WriterLock(folder):
        history.keep(folder, reader)
    *_, last = History(folder)
    assert last["count"] == 100 and [one["id"] for one in last["undone"]] == list(range(80, 100))
    lines = (folder / history.HISTORY_NAME).read_bytes().splitlines()
    assert max(map(len, lines)) < 1 << 16 and json.loads(lines[-1])["undone"] == last["undone"]


def test_ended_before_any_call_it_is_done_or_not(tmp_path, monkeypatch, dies_after):
    monkeypatch.setattr(checkpoint, "checksum_of", lambda _: SNAPSHOT)
    codes = []
    for last in range(20):
        folder = tmp_path / str(last)
        folder.mkdir()
        fill(folder)
        codes.append(dies_after(last, lambda folder=folder: undo.undo(folder, 2)))
        done = there(folder) == [[[0]], [[1, 2]], [3]]
        assert done or there(folder) == [[[0]], [[1, 2]], [[3], 0.75], [[4]]]
        assert told(folder) == [*ALL, *(["undo"] if done else [])]
        if codes[-1] == 0:
            break
        undo.undo(folder, 1 if done else 2)
        assert told(folder)[:5] == ALL and there(folder)[0] == [[0]]
    assert codes == [9] * (len(codes) - 1) + [0] and len(codes) > 4 and done
