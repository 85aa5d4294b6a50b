"""Frames: what was appended to a journal at once, marked so that a torn one is told from a damaged one.

A journal is one line of JSON and then frames. The line names the format, its version, the snapshot that the journal
continues, and an identity that is drawn by chance. A frame is a head of 64 bytes and a body:

    mark 8 | first sequence number 8 | records 8 | bytes of the body 8 | digest of the body 16 | digest of these 16

Numbers are little-endian and unsigned. Digests are the first 16 bytes of SHA-256 over the line's own digest and then
the bytes, so that no frame of another journal is taken for one of this, neither by a copy nor where a file system hands
out old blocks. The head has a digest of its own because its length must be known before the body can be read, and
because a head is then found again behind a damaged frame: with one behind it, a frame was once whole.
"""

import hashlib
import json
import re
import secrets
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from memoir_fast.errors import CheckpointError, NewerVersionError
from memoir_fast.io import strict_json
from memoir_fast.io.records import SIZES

FORMAT = "memoir_fast journal"
FORMAT_VERSION = 1
MARK = b"\x93frame\r\n"  # neither UTF-8 nor what a transfer as text would leave alone
HEAD_BYTES = 64

_HEAD = struct.Struct("<8sQQQ16s")
_DIGEST = 16
_LONGEST_LINE = 1024
_BLOCK = 1 << 20
_HEX64, _HEX32 = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Header:
    """What the first line of a journal says."""

    snapshot: str
    """Checksum of the settings of the snapshot that the journal continues: 64 digits of hex."""
    identity: str
    """32 digits of hex that no other journal has."""

    @classmethod
    def new(cls, snapshot: str) -> "Header":
        """The header of a journal that is to begin; ValueError where `snapshot` is no checksum."""
        if not _HEX64.fullmatch(snapshot):
            raise ValueError(f"a snapshot's checksum must be 64 digits of hex, got {snapshot!r}")
        return cls(snapshot, secrets.token_hex(16))

    @property
    def line(self) -> bytes:
        """As it stands in the file, with its own checksum."""
        values: dict[str, str | int] = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "snapshot": self.snapshot,
            "identity": self.identity,
        }
        checksum = hashlib.sha256(json.dumps(values).encode()).hexdigest()
        return json.dumps({**values, "checksum": checksum}).encode() + b"\n"

    @property
    def salt(self) -> bytes:
        """What every digest of this journal begins with."""
        return hashlib.sha256(self.line).digest()


def read_header(file: BinaryIO, path: Path) -> Header:
    """The header of a file that stands at its beginning.

    Raises:
        CheckpointError: the file is no journal, a damaged one, or of a newer version.
    """
    line = file.readline(_LONGEST_LINE)
    try:
        values = strict_json.loads(line)
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged at byte 0: its first line is not JSON: {error}") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no journal: format must be {FORMAT!r}")
    version = values.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise NewerVersionError(
            f"{path} has format version {version}, this memoir_fast reads up to {FORMAT_VERSION}: upgrade memoir-fast"
        )
    header = Header(str(values.get("snapshot")), str(values.get("identity")))
    if not (_HEX64.fullmatch(header.snapshot) and _HEX32.fullmatch(header.identity)) or header.line != line:
        raise CheckpointError(f"{path} is damaged at byte 0: its first line does not match its own checksum")
    return header


@dataclass(frozen=True)
class Frame:
    """A frame that was found whole."""

    offset: int
    """Where its head begins in the file."""
    first: int
    """Sequence number of its first record."""
    records: int
    size: int
    """Bytes of its body."""
    digest: bytes

    @property
    def body(self) -> int:
        """Where its body begins."""
        return self.offset + HEAD_BYTES

    @property
    def end(self) -> int:
        """Where the next frame begins."""
        return self.body + self.size


@dataclass(frozen=True)
class Tail:
    """What was dropped at the end of a journal: a record whose appending was cut off, and never acknowledged."""

    bytes_dropped: int
    reason: str


@dataclass(frozen=True)
class Stretch:
    """Bytes of a journal, behind its last frame that can be applied, in which records may lie."""

    start: int
    """Where the first of them would begin."""
    end: int
    first: int | None
    """Its sequence number; None where no head says it."""
    records: int
    """How many there were, as the head says; 0 without one."""
    whole: bool
    """A frame with the digest that it was written with."""


def pack(salt: bytes, first: int, records: int, body: list[bytes]) -> bytes:
    """The head of a frame whose body is these parts."""
    head = _HEAD.pack(MARK, first, records, sum(map(len, body)), _digest(salt, *body))
    return head + _digest(salt, head)


class Frames:
    """Finds one whole frame after another, up to the size that a journal's file had; keeps no body in memory.

    Args:
        file (BinaryIO): stands behind the header.
        path (Path): what errors call it.
        header (Header): as read from it.
        size (int): bytes of the file that may be read.
    """

    def __init__(self, file: BinaryIO, path: Path, header: Header, size: int) -> None:
        self._file, self._path, self._salt, self._size = file, path, header.salt, size
        self.end = file.tell()
        """Behind the last whole frame."""
        self.records = 0
        """How many records there are up to `end`."""
        self.tail: Tail | None = None
        """What was dropped, once the end was reached."""

    def __iter__(self) -> Iterator[Frame]:
        """Yields each frame, after its digests were compared.

        Raises:
            CheckpointError: damage; the message names the file, where, at which record, and how many are before it.
            OSError: the file cannot be read.
        """
        while self.end < self._size:
            frame = self._next()
            if frame is None:
                return
            self.end, self.records = frame.end, self.records + frame.records
            yield frame

    def damage(self, offset: int, sequence: int, reason: str) -> CheckpointError:
        """The error that says what is damaged, and what can still be read."""
        return CheckpointError(
            f"{self._path} is damaged at byte {offset}, in record {sequence}: {reason}; "
            f"records before it that can still be read: {sequence - 1}"
        )

    def read(self, offset: int, size: int) -> bytes:
        """Bytes of the file that must be there; the caller has compared `size` with the file's."""
        self._file.seek(offset)
        content = self._file.read(size)
        if len(content) < size:
            raise CheckpointError(f"{self._path} became shorter while it was read: is it being replaced? Read it again")
        return content

    def behind(self, place: int | None = None) -> Iterator[Stretch]:
        """What lies from a byte on, `end` unless it is given: whole frames, damaged ones, and bytes without a head.

        A frame that the file ends within is left out: it was never acknowledged. It costs one pass and one digest of
        each byte, whatever the bytes are. OSError, CheckpointError where the file cannot be read.
        """
        place = self.end if place is None else place
        while place < self._size:
            frame = self._head_at(place) if self._size - place >= HEAD_BYTES else None
            later = self._find_head(place + (1 if frame is None else HEAD_BYTES), None if frame is None else frame.end)
            if frame is None:
                yield Stretch(place + HEAD_BYTES, self._size if later is None else later, None, 0, False)
            elif later is not None or frame.end <= self._size:
                end, whole = (frame.end, self._is_whole(frame)) if later is None else (later, False)
                yield Stretch(frame.body, end, frame.first, frame.records, whole)
            place = later or (self._size if frame is None else frame.end)

    def _next(self) -> Frame | None:
        """The frame at `end`; None, with `tail` set, where nothing whole follows."""
        left, expected = self._size - self.end, self.records + 1
        frame = self._head_at(self.end) if left >= HEAD_BYTES else None
        if frame is None:
            self._torn(f"{left} bytes that no record begins with", self.end + 1)
        elif frame.first != expected:
            raise self.damage(self.end, expected, f"the record found there has the sequence number {frame.first}")
        elif not 1 <= frame.records <= frame.size // SIZES.size:
            raise self.damage(self.end, expected, f"{frame.records} records cannot lie in {frame.size} bytes")
        elif frame.end > self._size:
            self._torn(f"{self._size - frame.body} bytes of a record of {frame.size}", frame.body)
        elif self._is_whole(frame):
            return frame
        elif frame.end < self._size:  # more was appended, so this was whole once
            raise self.damage(self.end, expected, "its bytes are not those that were written")
        else:
            self._torn("the last record's bytes are not those that were to be written", frame.body)
        return None

    def _head_at(self, offset: int) -> Frame | None:
        return self._as_head(self.read(offset, HEAD_BYTES), offset)

    def _as_head(self, packed: bytes, offset: int) -> Frame | None:
        head, digest = packed[:-_DIGEST], packed[-_DIGEST:]
        if not head.startswith(MARK) or _digest(self._salt, head) != digest:
            return None
        _, first, records, size, body = _HEAD.unpack(head)
        return Frame(offset, first, records, size, body)

    def _is_whole(self, frame: Frame) -> bool:
        found = hashlib.sha256(self._salt)
        for start in range(frame.body, frame.end, _BLOCK):
            found.update(self.read(start, min(_BLOCK, frame.end - start)))
        return found.digest()[:_DIGEST] == frame.digest

    def _torn(self, reason: str, scan: int) -> None:
        """Notes a torn end, unless a head from `scan` on shows that more was appended, so that this was whole once."""
        later = self._find_head(scan)
        if later is not None:
            raise self.damage(self.end, self.records + 1, f"{reason}, but a later record begins at byte {later}")
        self.tail = Tail(self._size - self.end, f"{self._path}, at byte {self.end}: {reason}")

    def _find_head(self, start: int, stop: int | None = None) -> int | None:
        """Where the first head between `start` and `stop` begins. It costs one pass, whatever the bytes are."""
        size = self._size if stop is None else min(stop, self._size)
        while size - start >= HEAD_BYTES:
            block = self.read(start, min(_BLOCK, size - start))
            place = block.find(MARK)
            while 0 <= place <= len(block) - HEAD_BYTES:
                if self._as_head(block[place : place + HEAD_BYTES], start + place) is not None:
                    return start + place
                place = block.find(MARK, place + 1)
            start += len(block) - HEAD_BYTES + 1  # a head may begin in one block and end in the next
        return None


def _digest(salt: bytes, *parts: bytes) -> bytes:
    digest = hashlib.sha256(salt)
    for part in parts:
        digest.update(part)
    return digest.digest()[:_DIGEST]
