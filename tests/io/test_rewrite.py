"""A journal that is written anew: the old one or the new one is there, whole, whatever comes in between."""

import errno
import hashlib
import os

import pytest
import torch

from memoir_fast import atomic
from memoir_fast.errors import CheckpointError, LockedError
from memoir_fast.io import rewrite
from memoir_fast.io.journal import Journal, journal_path, read
from memoir_fast.io.writer_lock import WriterLock

SNAPSHOT = hashlib.sha256(b"a snapshot").hexdigest()
OLD = [[("note", {"n": 1}, {})], [("note", {"n": 2}, {}), ("note", {"n": 3}, {})]]
NEW = [[("note", {"n": 8}, {"x": torch.arange(3.0)}), ("other", {}, {})], [], [("note", {"n": 9}, {})]]


@pytest.fixture
def old(journal):
    for entries in OLD:
        journal.append_all(entries)
    return journal


def found(path):
    with read(path, SNAPSHOT) as reader:
        return [[(one.kind, one.values) for one in together] for together in reader.appends()], reader.tail


def plain(appends):
    return [[entry[:2] for entry in entries] for entries in appends if entries]


def test_what_belongs_together_stays_together(lock, old):
    assert found(old.path) == (plain(OLD), None)
    assert rewrite.write(lock, SNAPSHOT, NEW) == old.path
    assert found(old.path) == (plain(NEW), None)
    records = list(read(old.path))
    assert [one.sequence for one in records] == [1, 2, 3]
    assert torch.equal(records[0].tensors["x"], torch.arange(3.0))


def test_one_that_is_open_on_the_old_one_appends_nothing(lock, old):
    before, header = list(read(old.path)), read(old.path).header
    reader = read(old.path)
    rewrite.write(lock, SNAPSHOT, OLD)
    with pytest.raises(CheckpointError, match="was removed or replaced"):
        old.append("note")
    assert [one.values for one in reader] == [one.values for one in before], "who reads the old one reads on"
    assert read(old.path).header != header, "no frame of the old one is taken for one of the new one"
    with Journal(lock, SNAPSHOT) as again:
        assert again.append("note") == 4


def test_what_fails_leaves_the_old_one(lock, old, monkeypatch):
    before = old.path.read_bytes()

    def broken():
        yield NEW[0]
        raise KeyboardInterrupt

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(KeyboardInterrupt):
        rewrite.write(lock, SNAPSHOT, broken())
    with pytest.raises(ValueError, match="a kind must be"):
        rewrite.write(lock, SNAPSHOT, [[("No kind", {}, {})]])
    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "fsync", full)
        with pytest.raises(CheckpointError, match="No space left on device; it is as it was before"):
            rewrite.write(lock, SNAPSHOT, NEW)
    with monkeypatch.context() as patch:
        patch.setattr(rewrite, "sync_names", full)
        with pytest.raises(CheckpointError, match="a power cut may bring the old one back"):
            rewrite.write(lock, SNAPSHOT, NEW)
    assert found(old.path)[0] == plain(NEW)
    assert old.path.read_bytes() != before
    assert not list(lock.folder.glob(".*.tmp"))


def test_without_the_lock_nothing_is_written(lock, old):
    before = old.path.read_bytes()

    def released():
        yield NEW[0]
        lock.release()

    with pytest.raises(LockedError):
        rewrite.write(lock, SNAPSHOT, released())
    with pytest.raises(LockedError):
        rewrite.write(lock, SNAPSHOT, NEW)
    assert old.path.read_bytes() == before


def test_a_crash_before_any_call_leaves_one_of_the_two(tmp_path, dies_after):
    """The process dies before its n-th sync or move, for every n; what it left beside is cleared by the next."""
    seen = []
    for last in range(9):
        folder = tmp_path / str(last)
        folder.mkdir()
        with WriterLock(folder) as lock, Journal(lock, SNAPSHOT) as journal:
            journal.append("note", {"n": 1})
        code = dies_after(last, lambda: rewrite.write(WriterLock(folder), SNAPSHOT, [[("note", {"n": 8}, {})]]))  # noqa: B023
        (records,) = found(journal_path(folder, SNAPSHOT))[0]
        seen.append(records[0][1]["n"])
        if code == 0:
            break
        assert code == 9
        with WriterLock(folder) as lock:
            rewrite.write(lock, SNAPSHOT, NEW)
            assert found(journal_path(folder, SNAPSHOT))[0] == plain(NEW)
        assert not list(folder.glob(".*.tmp"))
    assert seen == [1, 1, 8, 8]
