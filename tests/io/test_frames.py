"""Damage of every kind to a journal's bytes: a torn end is dropped and told, all else refused, nothing wrong read."""

import hashlib
import random
import struct
import tracemalloc

import pytest
import torch

from memoir_fast.errors import CheckpointError
from memoir_fast.io import frames, records
from memoir_fast.io.frames import HEAD_BYTES, MARK, Header
from memoir_fast.io.journal import journal_path, read

SNAPSHOT = hashlib.sha256(b"a snapshot").hexdigest()
ENTRIES = [
    [("note", {"text": "first"}, {})],
    [("edit", {"prompt": "p"}, {"rows": torch.arange(3)}), ("delete", {"ids": [1]}, {})],
    [("calibration", {"tau": 0.5}, {})],
]


def frame(header, first, entries):
    """A frame of these entries, as bytes."""
    body = [part for entry in entries for part in records.pack(*entry)]
    return frames.pack(header.salt, first, len(entries), body) + b"".join(body)


def framed(header, first, count, body):
    """A frame of any bytes, with digests that are right."""
    return frames.pack(header.salt, first, count, [body]) + body


class Bytes:
    """A small journal, its parts, and what a reader says of other bytes in its place."""

    def __init__(self, folder):
        self.path = journal_path(folder, SNAPSHOT)
        self.header = Header.new(SNAPSHOT)
        self.frames = [frame(self.header, first, entries) for first, entries in zip((1, 2, 4), ENTRIES, strict=True)]
        self.whole = self.header.line + b"".join(self.frames)
        ends = [len(self.header.line)]
        for one in self.frames:
            ends.append(ends[-1] + len(one))
        self.ends = ends
        self.path.touch()

    def read(self, content):
        """(records that came, tail, error) where the file holds `content`."""
        with open(self.path, "r+b") as file:  # in place: some file systems sync where a file is made anew
            file.write(content)
            file.truncate()
        found, tail, error = [], None, None
        try:
            with read(self.path, SNAPSHOT) as reader:
                for record in reader:
                    found.append(record)
                tail = reader.tail
        except CheckpointError as raised:
            error = raised
        for sequence, record in enumerate(found, start=1):
            assert_same(record, sequence)
        return len(found), tail, error


def assert_same(record, sequence):
    if sequence == 5:  # what some tests append by themselves
        return
    kind, values, tensors = [entry for entries in ENTRIES for entry in entries][sequence - 1]
    assert (record.sequence, record.kind, record.values) == (sequence, kind, values)
    assert set(record.tensors) == set(tensors)
    assert all(torch.equal(record.tensors[name], tensor) for name, tensor in tensors.items())


@pytest.fixture
def small(tmp_path):
    return Bytes(tmp_path)


def test_whole(small):
    assert small.read(small.whole) == (4, None, None)
    assert small.read(small.header.line) == (0, None, None)


def test_cut_off_at_every_byte(small):
    """Within the first line it is no journal; at a record's end it is a shorter one; elsewhere a record is torn."""
    counts = dict(zip(small.ends, (0, 1, 3, 4), strict=True))
    for size in range(len(small.whole)):
        found, tail, error = small.read(small.whole[:size])
        if size < small.ends[0]:
            assert error is not None and small.path.name in str(error) and found == 0
            continue
        end = max(end for end in small.ends if end <= size)
        assert (found, error) == (counts[end], None)
        assert (tail is None) == (end == size)
        if tail:
            assert tail.bytes_dropped == size - end and f"{small.path}, at byte {end}: " in tail.reason


def test_every_bit_flipped(small):
    """A flip in the last record looks as a torn one: that record is dropped, and said. Any other is damage."""
    content = bytearray(small.whole)
    last = small.ends[-2]
    for place in range(len(content)):
        before = [count for end, count in zip(small.ends, (0, 1, 3, 4), strict=True) if end <= place]
        for bit in range(8):
            content[place] ^= 1 << bit
            found, tail, error = small.read(content)
            content[place] ^= 1 << bit
            if place >= last:
                assert (found, error) == (3, None) and tail.bytes_dropped == len(content) - last
                continue
            assert error is not None and str(small.path) in str(error)
            if before:
                assert found == before[-1]
                where = small.ends[before.index(found)] if found else small.ends[0]
                assert f"damaged at byte {where}, in record {found + 1}: " in str(error)
                assert str(error).endswith(f"records before it that can still be read: {found}")


def test_random_damage(small):
    """Several bytes changed, moved, doubled, left out, anywhere: no wrong record, and no other kind of error."""
    draw = random.Random(3)
    for _ in range(1500):
        content = bytearray(small.whole)
        for _ in range(draw.randint(1, 4)):
            at, other, length = draw.randrange(len(content)), draw.randrange(len(content)), draw.randint(1, 90)
            change = draw.randrange(4)
            if change == 0:
                content[at : at + length] = draw.randbytes(length)
            elif change == 1:
                content[at:at] = content[other : other + length]
            elif change == 2 and len(content) > 200:
                del content[at : at + length]
            else:
                content[at : at + length] = content[other : other + length]
        found, tail, error = small.read(content)
        assert found <= 4 and (found == 4 or tail or error or bytes(content) == small.whole[: len(content)])


@pytest.mark.parametrize(
    ("order", "found", "sequence"),
    [([1, 0, 2], 0, 2), ([0, 2, 1], 1, 4), ([0, 0, 1, 2], 1, 1), ([0, 2], 1, 4), ([1, 2], 0, 2), ([0, 1, 1], 3, 2)],
)
def test_records_that_are_swapped_doubled_or_missing(small, order, found, sequence):
    content = small.header.line + b"".join(small.frames[place] for place in order)
    count, tail, error = small.read(content)
    assert (count, tail) == (found, None)
    assert f"in record {found + 1}: the record found there has the sequence number {sequence}" in str(error)


@pytest.mark.parametrize("size", [1, 63, 64, 65, 5000])
@pytest.mark.parametrize("kind", ["zeros", "chance", "marks"])
def test_rubbish_behind_the_end_is_dropped(small, size, kind):
    chance = random.Random(size).randbytes(size)
    rubbish = {"zeros": bytes(size), "chance": chance, "marks": (MARK * size)[:size]}[kind]
    found, tail, error = small.read(small.whole + rubbish)
    assert (found, tail.bytes_dropped, error) == (4, size, None)


def test_bytes_behind_a_bad_record_show_that_it_was_whole(small):
    content = bytearray(small.whole + b"more")
    content[small.ends[2] + HEAD_BYTES + 3] ^= 1
    found, _, error = small.read(content)
    assert found == 3 and "in record 4: its bytes are not those that were written" in str(error)


BLOCK = 1 << 20  # that heads are looked for in


@pytest.mark.parametrize(
    "place", [200, BLOCK - 65, BLOCK - 64, BLOCK - 63, BLOCK - 1, BLOCK, 2 * BLOCK - 70, 2 * BLOCK]
)
@pytest.mark.parametrize("how", ["no head", "cut off"])
def test_a_record_behind_a_bad_one_is_found_wherever_it_begins(small, place, how):
    """As a writer of another kind would leave it, that went on behind a torn record."""
    if how == "no head":
        bad, scan = b"?" * 40, 1
    else:
        bad = framed(small.header, 2, 1, bytes(4 * BLOCK))[: HEAD_BYTES + 10]
        scan = HEAD_BYTES
    content = small.header.line + small.frames[0] + bad.ljust(scan + place, b"-") + small.frames[2]
    found, tail, error = small.read(content)
    later = len(content) - len(small.frames[2])
    assert (found, tail) == (1, None)
    assert f"byte {small.ends[1]}, in record 2: " in str(error)
    assert f"but a later record begins at byte {later};" in str(error)


def test_records_of_another_journal_are_none_of_this(small):
    other = frame(Header.new(SNAPSHOT), 5, [("note", {}, {})])
    found, tail, error = small.read(small.whole + other)
    assert (found, tail.bytes_dropped, error) == (4, len(other), None)
    found, _, error = small.read(small.header.line + frame(Header.new(SNAPSHOT), 1, ENTRIES[0]) + small.frames[1])
    assert found == 0 and "in record 1" in str(error)


LENGTHS = [0, 1, 11, 1 << 20, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]


@pytest.mark.parametrize(
    ("field", "length"),
    [
        (field, length)
        for field in ("size", "records", "first")
        for length in LENGTHS
        if (field, length) != ("records", 1)
    ],
)
def test_hostile_heads(small, field, length):
    """Heads whose digest is right, and whose numbers lie: nothing of that size is allocated."""
    body = b"".join(records.pack("note", {}, {}))
    numbers = {"first": 5, "records": 1, "size": len(body)} | {field: length}
    digest = hashlib.sha256(small.header.salt + body).digest()[:16]
    head = struct.pack("<8sQQQ16s", MARK, numbers["first"], numbers["records"], numbers["size"], digest)
    head += hashlib.sha256(small.header.salt + head).digest()[:16]
    tracemalloc.start()
    found, tail, error = small.read(small.whole + head + body)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300_000 and found == 4
    if field == "size" and length > len(body):  # as where the rest was never written
        assert (tail.bytes_dropped, error) == (len(head + body), None)
    else:
        assert tail is None and f"damaged at byte {len(small.whole)}, in record 5: " in str(error)


@pytest.mark.parametrize("text", [0, 1, 11, 1 << 20, (1 << 32) - 1])
@pytest.mark.parametrize("content", [0, 1 << 20, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_hostile_sizes_within_a_record(small, text, content):
    body = records.SIZES.pack(text, content) + b"{}"
    tracemalloc.start()
    found, tail, error = small.read(small.whole + framed(small.header, 5, 1, body))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300_000 and (found, tail) == (4, None)
    assert "in record 5: its parts do not make up its 14 bytes; records before it that can still be read: 4" in str(
        error
    )


HOSTILE_TEXTS = {
    "deep": b'{"kind":"note","values":' + b"[" * 5000 + b"]" * 5000 + b"}",
    "huge number": b'{"kind":"note","values":{"n":' + b"9" * 100_000 + b"}}",
    "nan": b'{"kind":"note","values":{"n":NaN}}',
    "twice": b'{"kind":"note","kind":"edit","values":{}}',
    "control character": b'{"kind":"note","values":{"a\\u001b":1}}',
    "not UTF-8": b'{"kind":"note","values":{"a":"\xff"}}',
    "no JSON": b"\x80\x04N.",
}


@pytest.mark.parametrize("name", HOSTILE_TEXTS)
def test_hostile_texts(small, name):
    text = HOSTILE_TEXTS[name]
    body = records.SIZES.pack(len(text), 0) + text
    found, tail, error = small.read(small.whole + framed(small.header, 5, 1, body))
    assert (found, tail) == (4, None)
    assert f"damaged at byte {len(small.whole) + HEAD_BYTES}, in record 5: it was written as no record is" in str(error)


def test_hostile_tensors_and_parts_that_do_not_add_up(small):
    sizes, text, _ = records.pack("edit", {}, {})
    for body in (
        records.SIZES.pack(len(text), 5) + text + b"12345",
        sizes + text + b"more",
        sizes + text + sizes[:-1],
    ):
        found, tail, error = small.read(small.whole + framed(small.header, 5, 1, body))
        assert (found, tail) == (4, None) and "in record 5: it" in str(error)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda line: line.replace(b'"format_version": 1', b'"format_version": 2'),
            "version 2, .* upgrade memoir-fast",
        ),
        (lambda line: line.replace(b"memoir_fast journal", b"memoir_fast memory"), "no journal: format must be"),
        (lambda line: line.replace(b"}", b', "more": 1}'), "does not match its own checksum"),
        (lambda line: line.replace(b": 1", b": true"), "does not match its own checksum"),
        (lambda line: line.replace(b'"identity"', b'"identity" '), "does not match its own checksum"),
        (lambda line: b"[" * 900 + b"\n", "not JSON"),
        (lambda line: b" " * 5000 + line, "not JSON"),
        (lambda line: b"null\n", "no journal"),
        (lambda line: b"", "not JSON"),
    ],
)
def test_first_lines_that_are_none(small, change, reason):
    found, _, error = small.read(change(small.header.line) + b"".join(small.frames))
    assert found == 0 and str(error).startswith(str(small.path))
    with pytest.raises(CheckpointError, match=reason):
        raise error


def test_checksums_that_are_none():
    for snapshot in ("", "ab", "AB" * 32, "../" * 22, "ab" * 33):
        with pytest.raises(ValueError, match="64 digits of hex"):
            Header.new(snapshot)
    assert Header.new(SNAPSHOT) != Header.new(SNAPSHOT)
