"""Kills processes that append to a journal, at moments drawn by chance, and looks for what they acknowledged.

    python tools/kill_journal.py --kills 1000 --seed 7

Each child opens the journal that its predecessor was killed over, appends records and groups of records, and says the
number of each that was acknowledged; every other one writes as to a slow disk, so that more records are torn. After
each kill every record is compared with what it must be, which follows from the seed and its number alone. Exit code 1:
a record was lost, wrong, or in half a group. A kill proves nothing of syncs, since the system keeps what was written:
the order of writes and syncs is a test's of its own.
"""

import argparse
import hashlib
import logging
import os
import random
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from memoir_fast.io.journal import Entry, Journal, journal_path, read
from memoir_fast.io.records import Record
from memoir_fast.io.writer_lock import WriterLock

LONGEST_WAIT = 0.04  # seconds from a child's start, or its first word, to its kill
LARGEST = 16 << 20  # bytes of a journal, before another is begun
PIECE = 4096
OPENED = 0  # what a child says once it has opened the journal


def entry(seed: int, sequence: int) -> Entry:
    """The record of a number: some have a few bytes, some a few hundred thousand."""
    draw = random.Random(f"{seed} {sequence}")
    numbers = bytearray(draw.randbytes(4 * draw.choice((1, 30, 2_000, 60_000))))
    return "edit", {"sequence": sequence}, {"rows": torch.frombuffer(numbers, dtype=torch.int32)}


def groups(seed: int, sequence: int) -> int:
    """How many records are appended at once, from this number on."""
    return random.Random(f"group {seed} {sequence}").choice((1, 1, 1, 3))


def write_slowly(descriptor: int, content: Any, whole: Callable[[int, Any], int] = os.write) -> int:
    """What `os.write` may do as well: less than was asked for, and not at once."""
    time.sleep(0.0002)
    return whole(descriptor, content[:PIECE])


def append_until_killed(folder: Path, snapshot: str, seed: int, slow: bool, say: int) -> None:
    """The child's part."""
    logging.disable()  # of the torn ends, which are counted
    if slow:
        os.write = write_slowly
    journal = Journal(WriterLock(folder), snapshot)
    os.write(say, b"%d\n" % OPENED)
    while True:
        first = journal.sequence + 1
        numbers = range(first, first + groups(seed, first))
        done = journal.append_all([entry(seed, number) for number in numbers])
        os.write(say, b"%d\n" % done[-1])


def kill_one(folder: Path, snapshot: str, seed: int, draw: random.Random, slow: bool) -> tuple[int, bool]:
    """(the last number that a child acknowledged, whether it was killed before it had opened the journal)."""
    hear, say = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(hear)
            append_until_killed(folder, snapshot, seed, slow, say)
        except BaseException:
            os.write(say, b"failed\n" + traceback.format_exc().encode())
        finally:
            os._exit(1)
    os.close(say)
    if draw.random() < 0.7:  # from when it appends; otherwise it may be killed while it opens the journal
        select.select([hear], [], [], 60)
    time.sleep(draw.uniform(0, LONGEST_WAIT))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with open(hear, "rb") as file:
        said = file.read()
    if b"failed" in said:
        raise AssertionError(said.decode())
    words = [int(word) for word in said.split(b"\n")[:-1]]
    return max(words, default=0), not words


def require_all(found: list[Record], seed: int, acknowledged: int) -> None:
    """AssertionError where a record is lost or wrong, or a group is there in part."""
    if len(found) < acknowledged:
        raise AssertionError(f"{acknowledged} records were acknowledged, {len(found)} are there")
    end = 0
    while end < len(found):
        end += groups(seed, end + 1)
    if end != len(found):
        raise AssertionError(f"the journal ends with record {len(found)}, in the middle of a group")
    for number, record in enumerate(found, start=1):
        kind, values, tensors = entry(seed, number)
        same = (record.sequence, record.kind, record.values) == (number, kind, values)
        if not same or not torch.equal(record.tensors["rows"], tensors["rows"]):
            raise AssertionError(f"record {number} is not what was appended")


def run(folder: Path, kills: int, seed: int) -> dict[str, int]:
    """Kills so many children; what happened, counted."""
    counts = {"records": 0, "torn": 0, "opening": 0, "unsaid": 0, "journals": 0}
    draw, snapshot, acknowledged = random.Random(seed), "", 0
    for number in range(kills):
        path = journal_path(folder, snapshot)
        if not snapshot or path.exists() and path.stat().st_size > LARGEST:
            path.unlink(missing_ok=True)
            snapshot, acknowledged = hashlib.sha256(b"%d %d" % (seed, number)).hexdigest(), 0
            path = journal_path(folder, snapshot)
            counts["journals"] += 1
        last, opening = kill_one(folder, snapshot, seed, draw, slow=number % 2 == 1)
        counts["records"] += max(0, last - acknowledged)
        counts["opening"] += opening
        acknowledged = max(acknowledged, last)
        if not path.exists():  # killed before the journal was begun
            continue
        with read(path, snapshot) as reader:
            found = list(reader)
        require_all(found, seed, acknowledged)
        counts["torn"] += reader.tail is not None
        counts["unsaid"] += len(found) - acknowledged
        acknowledged = len(found)  # whole, and so no less there than what was acknowledged
    return counts


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    counts: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            counts = run(Path(folder), options.kills, options.seed)
        except AssertionError as error:
            print(f"lost: {error}")
            return 1
    print(
        f"{options.kills} kills, {counts['opening']} of them while the journal was opened; {counts['records']} records "
        f"acknowledged in {counts['journals']} journals, none lost; {counts['torn']} torn ends, {counts['unsaid']} "
        "records that were whole and not acknowledged yet"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
