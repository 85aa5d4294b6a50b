"""Disks that fail, and ends at any moment: what is acknowledged is on the disk, what fails is not there."""

import errno
import hashlib
import logging
import os
import resource
import threading
import time

import pytest
import torch

from memoir_fast.errors import CheckpointError, LockedError
from memoir_fast.io import journal as journals
from memoir_fast.io.journal import Journal, journal_path, read
from memoir_fast.io.writer_lock import WriterLock

SNAPSHOT = hashlib.sha256(b"a snapshot").hexdigest()


def numbers(path):
    """(the records' values of `n`, tail)"""
    with read(path) as reader:
        return [record.values["n"] for record in reader], reader.tail


@pytest.fixture
def calls(monkeypatch):
    """What was asked of the system, in order: ("write", file, bytes), ("sync", file)."""
    log = []

    def write(descriptor, content, real=os.write):
        done = real(descriptor, content)
        log.append(("write", os.readlink(f"/proc/self/fd/{descriptor}"), bytes(content[:done])))
        return done

    def sync(descriptor, real=os.fsync):
        real(descriptor)
        log.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))

    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr(os, "fsync", sync)
    return log


def test_each_acknowledgement_follows_a_sync_of_just_its_bytes(calls, lock, tmp_path):
    with Journal(lock, SNAPSHOT) as journal:
        assert ("sync", str(tmp_path)) in calls, "the file's name would not outlive a power cut"
        file = str(journal.path)
        for entries in ([("note", {}, {})], [("edit", {}, {"rows": torch.ones(2000)}), ("note", {}, {})]):
            before = journal.path.read_bytes()
            calls.clear()
            journal.append_all(entries)
            assert calls[-1] == ("sync", file) and [call[0] for call in calls].count("sync") == 1
            written = b"".join(call[2] for call in calls if call[0] == "write" and call[1] == file)
            assert journal.path.read_bytes() == before + written and written
    calls.clear()
    with Journal(lock, SNAPSHOT):  # what a killed process wrote may not be on the disk yet
        assert calls == [("sync", file), ("sync", str(tmp_path))]


def test_short_writes_are_gone_on_with(journal, monkeypatch):
    monkeypatch.setattr(os, "write", lambda descriptor, content, real=os.write: real(descriptor, content[:7]))
    rows = torch.arange(100)
    journal.append("edit", {"n": 1}, {"rows": rows})
    (record,) = read(journal.path)
    assert torch.equal(record.tensors["rows"], rows)


def failing(monkeypatch, name, call, number, before=lambda *_: None):
    """Makes the `call`-th call of os.<name> fail."""
    real, count = getattr(os, name), [0]

    def function(*arguments):
        count[0] += 1
        if count[0] == call:
            before(*arguments)
            raise OSError(number, os.strerror(number))
        return real(*arguments)

    monkeypatch.setattr(os, name, function)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=["full", "broken"])
@pytest.mark.parametrize(
    ("name", "call", "half"), [("write", 1, False), ("write", 2, True), ("write", 4, True), ("fsync", 1, False)]
)
def test_disk_that_fails_in_the_middle_of_a_record(journal, lock, monkeypatch, number, name, call, half):
    journal.append("note", {"n": 1})
    before = journal.path.read_bytes()
    real = os.write
    with monkeypatch.context() as patch:
        some = (lambda descriptor, content: real(descriptor, content[: len(content) // 2])) if half else lambda *_: None
        failing(patch, name, call, number, some)
        with pytest.raises(
            CheckpointError, match=f"could not be written: .*{os.strerror(number)}.*; the journal is as"
        ):
            journal.append_all([("edit", {"n": 2}, {"rows": torch.ones(9)}), ("note", {"n": 3}, {})])
    assert journal.path.read_bytes() == before and journal.sequence == 1
    assert journal.append("note", {"n": 2}) == 2
    assert numbers(journal.path) == ([1, 2], None)


@pytest.mark.parametrize("name", ["ftruncate", "fsync"])
def test_failure_that_cannot_be_taken_back(journal, lock, monkeypatch, name):
    journal.append("note", {"n": 1})
    with monkeypatch.context() as patch:
        failing(patch, "write", 2, errno.ENOSPC)
        failing(patch, name, 1, errno.EIO)
        with pytest.raises(CheckpointError, match=r"No space left.*could not be taken back.*records that are safe: 1"):
            journal.append("note", {"n": 2})
    with pytest.raises(
        CheckpointError, match="nothing can be appended to .*: an append failed .*open the memory again"
    ):
        journal.append("note", {"n": 2})
    journal.close()
    with Journal(lock, SNAPSHOT) as again:
        assert (again.tail is not None) == (name == "ftruncate") and again.sequence == 1
        assert again.append("note", {"n": 2}) == 2
    assert numbers(journal.path) == ([1, 2], None)


def test_a_really_full_file(journal):
    """The process may write no file beyond a size; the system cuts the write short, then refuses."""
    journal.append("note", {"n": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (journal.size + 1000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="File too large.*as it was before"):
            journal.append("edit", {"n": 2}, {"rows": torch.ones(1000)})
        assert journal.append("note", {"n": 2}) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert numbers(journal.path) == ([1, 2], None)


@pytest.mark.parametrize("name", ["write", "fsync"])
def test_interrupt_in_the_middle_of_a_record(journal, monkeypatch, name):
    real, count = getattr(os, name), [0]

    def interrupted(*arguments):
        count[0] += 1
        if count[0] == 1:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            journal.append("note", {"n": 1})
    assert journal.append("note", {"n": 2}) == 1
    assert numbers(journal.path) == ([2], None)


def test_values_that_no_record_holds_write_nothing(journal):
    before = journal.size
    for kind, values in (("note", {"n": float("nan")}), ("No", {}), ("note", {1: 2})):
        with pytest.raises(ValueError):
            journal.append_all([("note", {"n": 1}, {}), (kind, values, {})])
    assert journal.path.stat().st_size == before and journal.append("note", {"n": 1}) == 1


# Opening


def test_torn_record_is_cut_off_and_told(journal, lock, caplog):
    journal.append("note", {"n": 1})
    end = journal.size
    journal.append("note", {"n": 2})
    journal.close()
    os.truncate(journal.path, journal.size - 1)
    with caplog.at_level(logging.WARNING, logger="memoir_fast"), Journal(lock, SNAPSHOT) as again:
        assert again.tail.bytes_dropped == journal.size - 1 - end
        assert again.size == again.path.stat().st_size == end
        assert f"{again.tail.bytes_dropped} bytes were dropped: {journal.path}, at byte {end}: " in caplog.text
        assert again.append("note", {"n": 3}) == 2
    assert numbers(journal.path) == ([1, 3], None)


def test_damaged_journal_is_not_appended_to(journal, lock):
    for n in (1, 2, 3):
        journal.append("note", {"n": n})
    journal.close()
    content = bytearray(journal.path.read_bytes())
    content[-150] ^= 1
    journal.path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged at byte .* in record 2: "):
        Journal(lock, SNAPSHOT)
    assert journal.path.read_bytes() == content


def test_what_a_crash_left_is_cleared(lock, tmp_path):
    left, other = tmp_path / f".journal-{'0' * 12}.log.0123abcd.tmp", tmp_path / ".journal.tmp"
    left.touch()
    other.touch()
    Journal(lock, SNAPSHOT).close()
    assert other.exists() and not left.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_without_permission(journal, lock, tmp_path):
    journal.append("note", {"n": 1})
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(CheckpointError, match="Permission denied"):
            Journal(lock, "0" * 64)
        assert numbers(journal.path) == ([1], None)
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_folder_that_cannot_be_written(lock, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(journals, "replace", refuse)
    with pytest.raises(CheckpointError, match=f"cannot be opened for writing: .*{os.strerror(number)}"):
        Journal(lock, SNAPSHOT)


@pytest.mark.parametrize("kind", ["pipe", "folder", "link", "device"])
def test_what_is_no_file(lock, tmp_path, kind):
    """Nothing waits for a pipe or reads a device without an end, and nothing is written behind a link."""
    path = journal_path(tmp_path, SNAPSHOT)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        (tmp_path / "mine").write_bytes(b"mine")
        path.symlink_to("/dev/zero" if kind == "device" else tmp_path / "mine")
    with pytest.raises(CheckpointError, match="journal-"):
        Journal(lock, SNAPSHOT)
    with pytest.raises(CheckpointError, match="must be a file, and is a" if kind != "link" else "not JSON"):
        read(path)
    assert kind != "link" or (tmp_path / "mine").read_bytes() == b"mine"


def test_link_to_a_journal(journal, tmp_path):
    """Is read, as a link to a snapshot's files is, and not appended to: it may lead to another memory's."""
    journal.append("note", {"n": 1})
    (tmp_path / "other").mkdir()
    link = journal_path(tmp_path / "other", SNAPSHOT)
    link.symlink_to(journal.path)
    assert numbers(link) == ([1], None)
    with WriterLock(tmp_path / "other") as lock, pytest.raises(CheckpointError, match="cannot be opened for writing"):
        Journal(lock, SNAPSHOT)


def test_clock_that_goes_backwards(journal, monkeypatch):
    """Times are values like others; what counts is the sequence number."""
    for n, now in enumerate((2e9, 1e9, -5.0)):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        journal.append("edit", {"n": n, "time": time.time()})
    assert [(record.sequence, record.values["time"]) for record in read(journal.path)] == [
        (1, 2e9),
        (2, 1e9),
        (3, -5.0),
    ]


def test_slow_disk_keeps_readers_waiting_for_what_is_not_safe_yet(journal, monkeypatch):
    """A record that is written and not synced is not told of; who reads meanwhile gets it once it is."""
    journal.append("note", {"n": 1})
    syncing, goes_on, seen = threading.Event(), threading.Event(), []

    def slowly(descriptor, sync=os.fsync):
        syncing.set()
        assert goes_on.wait(30)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", slowly)
    writer = threading.Thread(target=journal.append, args=("note", {"n": 2}))
    reader = threading.Thread(target=lambda: seen.append(numbers(journal.path)))
    writer.start()
    assert syncing.wait(30) and journal.path.stat().st_size > journal.size
    reader.start()
    reader.join(0.1)
    assert reader.is_alive() and not seen
    goes_on.set()
    for thread in (writer, reader):
        thread.join()
    assert seen == [([1, 2], None)]


def test_folder_of_a_system_that_is_read_only(journal, tmp_path, monkeypatch):
    """Is read as any other, and not opened for writing."""
    journal.append("note", {"n": 1})

    def read_only(path, flags, *arguments, real=os.open, **more):
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return real(path, flags, *arguments, **more)

    monkeypatch.setattr(os, "open", read_only)
    assert numbers(journal.path) == ([1], None)
    with pytest.raises(CheckpointError, match="Read-only file system"):
        WriterLock(tmp_path)


def test_clock_that_goes_backwards_between_two_writers(tmp_path, monkeypatch):
    """The lock's age is a word in a message, and no reason to take it."""
    with WriterLock(tmp_path):
        monkeypatch.setattr(time, "time", lambda: -1e9)
        with pytest.raises(LockedError, match="is being written by"):
            WriterLock(tmp_path)
    with WriterLock(tmp_path) as lock, Journal(lock, SNAPSHOT) as journal:
        assert journal.append("note", {"n": 1}) == 1
