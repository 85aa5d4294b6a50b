"""Appending and reading: what is acknowledged comes back, readers see just that, others are kept out."""

import errno
import hashlib
import os
import re
import subprocess
import sys
import threading
import time
import tracemalloc

import pytest
import torch

from memoir_fast.errors import CheckpointError, LockedError
from memoir_fast.io import journal as journals
from memoir_fast.io.journal import JOURNAL_NAMES, Journal, journal_path, read

SNAPSHOT = hashlib.sha256(b"a snapshot").hexdigest()


def numbers(path):
    """(the records' values of `n`, tail)"""
    with read(path) as reader:
        return [record.values["n"] for record in reader], reader.tail


def test_records_come_back_in_their_order(journal, lock):
    rows = torch.randn(3, 4).bfloat16()
    assert journal.append("edit", {"n": 1, "prompt": "Ω\x1b"}, {"rows": rows}) == 1
    assert journal.append_all([("note", {"n": n}, {}) for n in (2, 3)]) == range(2, 4)
    assert journal.append_all([]) == range(4, 4)
    assert journal.append("note", {"n": 4}) == 4 == journal.sequence
    found = list(read(journal.path, SNAPSHOT))
    assert [(one.sequence, one.kind, one.values["n"]) for one in found] == [
        (1, "edit", 1),
        (2, "note", 2),
        (3, "note", 3),
        (4, "note", 4),
    ]
    assert found[0].values["prompt"] == "Ω\x1b" and torch.equal(found[0].tensors["rows"], rows)
    assert journal.size == journal.path.stat().st_size
    journal.close()
    with Journal(lock, SNAPSHOT) as again:
        assert (again.sequence, again.size, again.tail) == (4, journal.size, None)
        assert again.append("note", {"n": 5}) == 5
    assert numbers(journal.path) == ([1, 2, 3, 4, 5], None)


@pytest.mark.parametrize("after", range(6))
def test_reading_on_behind_a_record(journal, after):
    journal.append("note", {"n": 1})
    journal.append_all([("note", {"n": n}, {}) for n in (2, 3, 4)])
    journal.append("note", {"n": 5})
    assert [record.sequence for record in read(journal.path, after=after)] == list(range(after + 1, 6))


def test_file_is_named_after_its_snapshot(journal, lock, tmp_path):
    assert journal.path == tmp_path / f"journal-{SNAPSHOT[:12]}.log" == journal_path(tmp_path, SNAPSHOT)
    assert re.fullmatch(JOURNAL_NAMES, journal.path.name)
    alike = SNAPSHOT[:12] + "0" * 52
    for attempt in (lambda: read(journal.path, alike), lambda: Journal(lock, alike)):
        with pytest.raises(CheckpointError, match=f"continues the snapshot {SNAPSHOT[:12]}..., not the folder's"):
            attempt()
    with pytest.raises(ValueError, match="64 digits of hex"):
        Journal(lock, "../../etc")
    with pytest.raises(CheckpointError, match="there is no journal"):
        read(journal_path(tmp_path, "0" * 64))


def test_an_edit_costs_its_own_bytes_and_a_tenth_at_most(journal):
    """k = 440, O = 576, float32, as for SmolLM2-135M; and a small edit of a large layer's dtype."""
    texts = {"prompt": "The capital of France is", "target": "Lyon", "author": "somebody", "source": "a ticket"}
    values = {**texts, "id": 7, "time": 1.7e9, "page": 0, "threshold": 201, "paraphrases": ["France's capital is"]}
    tensors = {
        "mask": torch.ones(48, dtype=torch.int32),
        "codes": torch.ones(4, 48, dtype=torch.int32),
        "rows": torch.randn(440, 576),
    }
    before = journal.size
    journal.append("edit", values, tensors)
    own = sum(one.numel() * one.element_size() for one in tensors.values()) + sum(len(text) for text in texts.values())
    assert own < journal.size - before < 1.001 * own
    before = journal.size
    journal.append("edit", texts, {"rows": torch.zeros(16, 512).bfloat16()})
    assert journal.size - before < 1.1 * (16 * 512 * 2 + sum(len(text) for text in texts.values()))


def test_many_records_are_read_in_little_memory(journal):
    megabyte = torch.zeros(1 << 18)
    journal.append_all([("edit", {"n": n}, {"rows": megabyte}) for n in range(24)])
    tracemalloc.start()
    for count, record in enumerate(read(journal.path)):
        assert record.values["n"] == count
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 23 and peak < 6 << 20


def test_what_others_do_to_the_file_ends_appending(journal, lock, tmp_path):
    journal.append("note", {"n": 1})
    with open(journal.path, "ab") as file:
        file.write(b"more")
    with pytest.raises(CheckpointError, match="somebody else has written to it; open the memory again"):
        journal.append("note", {"n": 2})
    os.truncate(journal.path, journal.size)
    assert journal.append("note", {"n": 2}) == 2
    os.rename(journal.path, tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="it was removed or replaced; open the memory again"):
        journal.append("note", {"n": 3})
    os.rename(tmp_path / "elsewhere", journal.path)
    lock.release()
    with pytest.raises(LockedError, match="is not locked by this process"):
        journal.append("note", {"n": 3})
    assert numbers(journal.path) == ([1, 2], None)


def test_closed(journal):
    journal.close()
    with pytest.raises(CheckpointError, match="it was closed"):
        journal.append("note", {"n": 1})
    reader = read(journal.path)
    reader.close()
    assert list(reader) == []


def test_threads_take_turns(journal):
    def work(name):
        for n in range(20):
            journal.append_all([("note", {"n": [name, n, part]}, {}) for part in range(2)])

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found, tail = numbers(journal.path)
    assert tail is None and found[::2] == [[name, n, 0] for name, n, _ in found[1::2]]
    for name in range(4):
        assert [n for who, n, part in found if (who, part) == (name, 0)] == list(range(20))


def test_reader_beside_a_writer_sees_what_was_acknowledged(journal):
    """Not less, not more, and never a torn end: it asks for the size between two appends."""
    acknowledged = [0]

    def write():
        for _ in range(60):
            acknowledged[0] = journal.append("edit", {"n": 0}, {"rows": torch.zeros(20_000)})

    writer = threading.Thread(target=write)
    writer.start()
    looks = 0
    while writer.is_alive():
        least = acknowledged[0]
        with read(journal.path, SNAPSHOT) as reader:
            most = acknowledged[0] + 1  # one may be synced, and its acknowledgement under way
            count = sum(1 for _ in reader)
            assert least <= count <= most and reader.tail is None
        looks += 1
    writer.join()
    assert looks > 3 and journal.sequence == 60


def test_reader_sees_nothing_of_an_append_that_is_taken_back(journal, monkeypatch):
    """The whole record is in the file when its sync fails; a reader that comes then waits until it is out again."""
    journal.append("note", {"n": 1})
    inside, seen = threading.Event(), []

    def sync(descriptor, real=os.fsync):
        if not inside.is_set():
            inside.set()
            time.sleep(0.2)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(descriptor)

    def look():
        inside.wait()
        seen.append(numbers(journal.path))

    monkeypatch.setattr(os, "fsync", sync)
    reader = threading.Thread(target=look)
    reader.start()
    with pytest.raises(CheckpointError, match="as it was before"):
        journal.append("note", {"n": 2})
    reader.join()
    assert seen == [([1], None)]


_FORKED = """
import os, sys
from memoir_fast.errors import LockedError
from memoir_fast.io.journal import Journal
from memoir_fast.io.writer_lock import WriterLock
journal = Journal(WriterLock(sys.argv[1]), "ab" * 32)
journal._one_at_a_time.acquire()  # as where another thread appends while this one forks
child = os.fork()
if not child:
    try:
        journal.append("note")
    except LockedError as error:
        closed = journal._file.closed  # or the child would hold the lock of a record that the parent is killed over
        os._exit(7 if closed and "forked this one has it" in str(error) else 1)
    os._exit(2)
journal._one_at_a_time.release()
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status), journal.append("note"))
"""


def test_forked_child_appends_nothing(tmp_path):
    run = [sys.executable, "-c", _FORKED, str(tmp_path)]
    done = subprocess.run(run, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout.split() == ["7", "1"], done.stderr


def test_without_locks_of_files(journal, monkeypatch):
    """A reader on a file system that has none goes without."""

    class NoLocks:
        LOCK_SH = LOCK_EX = LOCK_UN = 0

        @staticmethod
        def flock(*_):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    journal.append("note", {"n": 1})
    for module in (NoLocks, None):
        monkeypatch.setattr(journals, "fcntl", module)
        assert numbers(journal.path) == ([1], None)
