"""Full disks, writes cut short and crashes at any moment: the earlier memory or the new one is there, whole."""

import errno
import os
import re
import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from memoir_fast import atomic
from memoir_fast.errors import CheckpointError
from memoir_fast.io import checkpoint

PROMPTS = ("The capital of France is", "Who wrote the play?", "Which animal lives in the desert?")


def listing(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("call", range(5))
def test_disk_full_at_any_sync(saved, memoir, monkeypatch, call):
    """Five syncs make a save: two data files, the folder, the config, the folder again, which is past the commit."""
    before, old = listing(saved), dict(memoir.edits)
    memoir.edit("Who is there?", "Nobody")
    calls = []

    def full(descriptor, sync=os.fsync):
        calls.append(descriptor)
        if len(calls) == call + 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "fsync", full)
        with pytest.raises(CheckpointError, match="No space left on device"):
            memoir.save_pretrained(saved)
    if call < 4:
        assert listing(saved) == before
    assert checkpoint.read(saved).edits == (old if call < 4 else memoir.edits)
    memoir.save_pretrained(saved)
    assert len(listing(saved)) == 3 and checkpoint.read(saved).edits == memoir.edits


def test_write_that_the_system_cuts_short(saved, memoir, tmp_path):
    """A real one: the process may write no file larger than 2,000 bytes."""
    before = listing(saved)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        for folder in (saved, tmp_path / "new"):
            with pytest.raises(CheckpointError, match="File too large"):
                memoir.edit(PROMPTS[0], "Berlin")
                memoir.save_pretrained(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert listing(saved) == before
    assert not (tmp_path / "new").exists()


_CRASHING = """
import os, pathlib, re, sys
from memoir_fast import atomic
folder, last = pathlib.Path(sys.argv[1]), int(sys.argv[2])
calls = 0
def dying(function):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls > last:
            os._exit(9)
        return function(*args, **kwargs)
    return call
for name in ("fsync", "replace"):
    setattr(os, name, dying(getattr(os, name)))
pathlib.Path.unlink = dying(pathlib.Path.unlink)
atomic.publish(folder, {"a-2": b"two", "b-2": b"two"}, "index", b"2", re.compile(r"[ab]-\\d"))
"""


def test_crash_before_any_call_leaves_one_of_the_two_sets(tmp_path):
    """The process dies, without any clean-up, before its n-th sync, move or removal, for every n."""
    owned = re.compile(r"[ab]-\d|" + atomic.leftover(r"([ab]-\d|index)"))
    seen = []
    for last in range(20):
        folder = tmp_path / str(last)
        atomic.publish(folder, {"a-1": b"one", "b-1": b"one"}, "index", b"1", owned)
        done = subprocess.run([sys.executable, "-c", _CRASHING, str(folder), str(last)], check=False)
        number = (folder / "index").read_bytes().decode()
        for name in "ab":
            assert (folder / f"{name}-{number}").read_bytes() == {"1": b"one", "2": b"two"}[number]
        seen.append(number)
        if done.returncode == 0:
            break
        assert done.returncode == 9
        atomic.publish(folder, {"a-3": b"three", "b-3": b"three"}, "index", b"3", owned)
        assert sorted(listing(folder)) == ["a-3", "b-3", "index"]
    assert seen == sorted(seen) and len(seen) == 11 and set(seen) == {"1", "2"}


@pytest.mark.parametrize("call", range(5))
def test_interrupt_during_a_save(tmp_path, monkeypatch, call):
    owned = re.compile(r"a-\d")
    atomic.publish(tmp_path, {"a-1": b"one"}, "index", b"1", owned)
    calls = []

    def interrupted(*arguments, replace=os.replace):
        calls.append(1)
        if len(calls) == 1 + call // 2 and call % 2 == 0:
            raise KeyboardInterrupt
        replace(*arguments)
        if len(calls) == 1 + call // 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "replace", interrupted)
        if call < 4:
            with pytest.raises(KeyboardInterrupt):
                atomic.publish(tmp_path, {"a-2": b"two"}, "index", b"2", owned)
        else:
            atomic.publish(tmp_path, {"a-2": b"two"}, "index", b"2", owned)
    number = (tmp_path / "index").read_text()
    assert number == ("1" if call < 3 else "2")
    assert (tmp_path / f"a-{number}").read_bytes() == {"1": b"one", "2": b"two"}[number]


def test_reader_beside_a_writer_sees_whole_sets(tmp_path):
    owned = re.compile(r"a-\d+")
    atomic.publish(tmp_path, {"a-0": b"0"}, "index", b"0", owned)

    def write():
        for number in range(1, 60):
            atomic.publish(tmp_path, {f"a-{number}": b"%d" % number}, "index", b"%d" % number, owned)

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while writer.is_alive():
        with atomic.locked(tmp_path, shared=True):
            number = (tmp_path / "index").read_bytes().decode()
            assert (tmp_path / f"a-{number}").read_bytes().decode() == number
            seen.add(number)
    writer.join()
    assert seen
