"""One writer at a time: who holds the lock is said, and no end of a process leaves it held."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from memoir_fast.errors import CheckpointError, LockedError
from memoir_fast.io import writer_lock
from memoir_fast.io.writer_lock import LOCK_NAME, Owner, WriterLock

_HOLDING = """
import sys, time
from memoir_fast.io.writer_lock import WriterLock
lock = WriterLock(sys.argv[1])
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the folder's lock."""
    process = subprocess.Popen([sys.executable, "-c", _HOLDING, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_another_process_is_named_and_its_end_frees_the_lock(other, tmp_path):
    words = (
        rf"{tmp_path} is being written by process {other.pid} on this machine, running for \d+ s, which took the lock "
        r"\d+ s ago\. .*close it there or end that process, or open the folder for reading"
    )
    with pytest.raises(LockedError, match=words):
        WriterLock(tmp_path)
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    with WriterLock(tmp_path) as lock:
        assert lock.previous.pid == other.pid
        lock.require_held()
    with WriterLock(tmp_path) as lock:
        assert lock.previous is None


def test_within_one_process(tmp_path):
    first = WriterLock(tmp_path)
    with pytest.raises(LockedError, match="written by this very process on this machine"):
        WriterLock(str(tmp_path))
    first.release()
    first.release()
    with pytest.raises(LockedError, match="is not locked by this process: it was released"):
        first.require_held()
    second = WriterLock(tmp_path)
    del second  # what nobody refers to any more holds nothing
    WriterLock(tmp_path).release()


def test_file_says_who_writes(tmp_path):
    with WriterLock(tmp_path):
        values = json.loads((tmp_path / LOCK_NAME).read_text())
        assert set(values) == {"pid", "host", "started", "since"} and values["pid"] == os.getpid()
        assert values["started"] < values["since"] <= time.time()
    assert (tmp_path / LOCK_NAME).read_bytes() == b""


@pytest.mark.parametrize("how", ["removed", "replaced", "folder removed"])
def test_lock_whose_file_is_taken_away(tmp_path, how):
    """Without its file a lock keeps nobody out: the holder has to notice."""
    (tmp_path / "memory").mkdir()
    lock = WriterLock(tmp_path / "memory")
    lock.path.unlink()
    if how == "replaced":
        WriterLock(tmp_path / "memory")
    elif how == "folder removed":
        (tmp_path / "memory").rmdir()
    if how == "replaced":
        lock.path.touch()
    with pytest.raises(LockedError, match="was replaced by another" if how == "replaced" else "is gone"):
        lock.require_held()


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe",
        b"[1]",
        b"{" * 5000,
        b'{"pid": 1}',
        b'{"pid": "\\u001b[2J", "host": "a", "started": null, "since": 1}',
        b'{"pid": 1, "host": "a", "started": "nan", "since": 1}',
        b'{"pid": 1, "host": "a", "started": NaN, "since": 1}',
        b'{"pid": 1, "host": 7, "started": 1, "since": 1}',
    ],
)
def test_what_the_file_says_is_not_relied_on(tmp_path, content):
    held = WriterLock(tmp_path)
    held.path.write_bytes(content)
    with pytest.raises(LockedError, match="written by a process that has not said its name yet"):
        WriterLock(tmp_path)
    held.release()
    held.path.write_bytes(content)
    assert WriterLock(tmp_path).previous is None


def test_owners_in_words(monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1000.0 + 3 * 86400)
    far = str(Owner(7, "h\x1b[2J", 1000.0 + 86400, 1000.0 + 3 * 86400 - 61))
    assert far == "process 7 on host 'h\\x1b[2J', running for 2 days, which took the lock 1 minute ago"
    assert str(Owner(7, "h", None, 9e9)).endswith("process 7 on host 'h', which took the lock 0 s ago")  # set back


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_file_system_without_locks(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(writer_lock.fcntl, "flock", refuse)
    words = f"cannot be locked: .*{os.strerror(number)}.*without locks .*keep the memory on a local disk"
    with pytest.raises(CheckpointError, match=words):
        WriterLock(tmp_path)


def test_system_without_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(writer_lock, "fcntl", None)
    with pytest.raises(CheckpointError, match="this system has no file locks"):
        WriterLock(tmp_path)


@pytest.mark.parametrize("kind", ["missing", "file", "link", "pipe"])
def test_folders_that_cannot_be_locked(tmp_path, kind):
    folder = tmp_path / "memory"
    if kind == "file":
        folder.write_bytes(b"mine")
    elif kind != "missing":
        folder.mkdir()
        (tmp_path / "mine").write_bytes(b"mine")
        (folder / LOCK_NAME).symlink_to(tmp_path / "mine") if kind == "link" else os.mkfifo(folder / LOCK_NAME)
    with pytest.raises(CheckpointError, match=re.escape(str(folder))):
        WriterLock(folder)
    assert kind != "link" or (tmp_path / "mine").read_bytes() == b"mine"


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_read_only_folder(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(writer_lock.os, "open", refuse)
    with pytest.raises(CheckpointError, match=f"{tmp_path} cannot be locked for writing: .*{os.strerror(number)}"):
        WriterLock(tmp_path)


def test_full_disk_keeps_nobody_from_the_lock(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(writer_lock.os, "pwrite", full)
        with WriterLock(tmp_path) as lock:
            lock.require_held()
            with pytest.raises(LockedError, match="has not said its name"):
                WriterLock(tmp_path)


_FORKING = """
import os, sys, time
from memoir_fast.errors import LockedError
from memoir_fast.io.writer_lock import WriterLock
lock = WriterLock(sys.argv[1])
child = os.fork()
if not child:
    try:
        lock.require_held()
    except LockedError:
        lock.release()  # of no effect: the parent's it is
        print(os.getpid(), flush=True)
    time.sleep(60)
time.sleep(60)
"""


def test_forked_child_neither_holds_nor_frees_the_lock(tmp_path):
    parent = subprocess.Popen([sys.executable, "-c", _FORKING, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    try:
        with pytest.raises(LockedError, match=f"written by process {parent.pid} "):
            WriterLock(tmp_path)
        parent.kill()
        parent.wait()
        WriterLock(tmp_path).release()
    finally:
        parent.kill()
        os.kill(child, signal.SIGKILL)
        parent.wait()
        parent.stdout.close()
