"""Texts out of a damaged folder: what its files still say of edits and deletions, and how far that is certain."""

import hashlib
import re
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

from memoir_fast.core.edit import Edit
from memoir_fast.errors import CheckpointError, NewerVersionError
from memoir_fast.io import changes, strict_json
from memoir_fast.io.files import read_file
from memoir_fast.io.frames import HEAD_BYTES, MARK, Frames, Stretch
from memoir_fast.io.history import UNDO
from memoir_fast.io.journal import JOURNAL_NAMES, JournalReader
from memoir_fast.io.records import SIZES, Record, unpack

_EDITS_NAMES = r"edits-[0-9a-f]{12}\.jsonl"
_MOST = 1 << 32  # bytes of a file that are read at once


@dataclass
class Texts:
    """Edits and deletions that were read, in the order in which they came."""

    kept: Collection[int] = ()
    """Ids of edits from elsewhere, which may be deleted here."""
    edits: dict[int, Edit] = field(default_factory=dict)
    """Those whose bytes are whole, by id."""
    unsure: dict[int, Edit] = field(default_factory=dict)
    """Those whose bytes are damaged: a letter may be another."""
    deleted: list[int] = field(default_factory=list)
    """Deletions whose bytes are whole."""
    records: int = 0
    """How many records these came from."""
    unreadable: int = 0
    """Lines of edits of which nothing can be read, and records of journals that were read as a whole."""
    last: int = 0
    """The greatest sequence number that anything tells of."""

    def add(self, edit_id: int, edit: Edit, whole: bool) -> None:
        """Takes an edit in, in place of an earlier one of its id; what is damaged takes no whole one's place."""
        self.unsure.pop(edit_id, None)
        (self.edits if whole else self.unsure)[edit_id] = edit

    def delete(self, edit_id: int) -> bool:
        """Takes a deletion in, and says whether there is such an edit."""
        texts = [self.edits.pop(edit_id, None), self.unsure.pop(edit_id, None)]
        self.deleted.append(edit_id)
        return edit_id in self.kept or any(texts)


def behind(frames: Frames, place: int, kept: Collection[int]) -> Texts:
    """What a journal says from a byte on, where its first frame begins that cannot be applied; `kept` as in `Texts`."""
    found = Texts(kept)
    for stretch in frames.behind(place):
        _read(frames.read, stretch, found)
    return found


def of_folder(folder: Path) -> Texts:
    """What the files of a folder say whose settings or tensors cannot be used: those of its edits, then its journals.

    Raises:
        NewerVersionError: a journal was written by a newer version.
        OSError: the folder cannot be read.
    """
    found = Texts()
    paths = sorted(folder.iterdir(), key=lambda path: (path.lstat().st_mtime, path.name))
    for path in paths:
        if re.fullmatch(_EDITS_NAMES, path.name):
            _read_lines(path, found)
    for path in paths:
        if re.fullmatch(JOURNAL_NAMES, path.name):
            found.last = found.records = 0
            of_journal(path, found)
            found.unreadable += max(0, found.last - found.records)
    return found


def of_journal(path: Path, found: Texts) -> None:
    """Takes in all that a journal says. NewerVersionError where it was written by a newer version."""
    try:
        with JournalReader(path) as reader:
            for stretch in reader.frames.behind():
                _read(reader.frames.read, stretch, found)
    except NewerVersionError:
        raise
    except CheckpointError:
        _read_without_header(path, found)


def _read_without_header(path: Path, found: Texts) -> None:
    """Takes in what lies behind each mark of a journal whose first line, and so what digests begin with, is gone."""
    with suppress(OSError, CheckpointError):
        content = read_file(path, _MOST)
        places = [match.start() for match in re.finditer(re.escape(MARK), content)]
        for place, end in pairwise([*places, len(content)]):
            stretch = Stretch(place + HEAD_BYTES, end, None, 0, False)
            _read(lambda at, size: content[at : at + size], stretch, found)


def _read(read: Callable[[int, int], bytes], stretch: Stretch, found: Texts) -> None:
    """Takes in the values of the records in a stretch, up to where they cannot be parsed any more."""
    place = stretch.start
    if stretch.first is not None:
        found.last = max(found.last, stretch.first + stretch.records - 1)
    while stretch.end - place >= SIZES.size:
        text, content = SIZES.unpack(read(place, SIZES.size))
        place += SIZES.size
        if text > min(strict_json.LONGEST, stretch.end - place):
            break
        try:
            record = unpack(0, read(place, text), b"")
        except ValueError:
            break
        _take(record, stretch.whole, found)
        place += text + content


def _take(record: Record, whole: bool, found: Texts) -> None:
    ids, edits = record.values.get("ids"), dict[int, Edit]()
    if record.kind != "delete":
        for values in (record.values, {**record.values, "subject": ""}):  # a damaged prompt may not name it any more
            with suppress(CheckpointError):
                changes.apply_texts(edits, replace(record, values=values))
                break
        for edit_id, edit in edits.items():
            found.add(edit_id, edit, whole)
        found.records += bool(edits) or record.kind == UNDO  # which says what is not there any more
    elif whole and isinstance(ids, list) and all(isinstance(edit_id, int) for edit_id in ids):
        known = [found.delete(edit_id) for edit_id in ids]
        found.records += any(known)


def _read_lines(path: Path, found: Texts) -> None:
    """Takes in the lines of a file of edits that can be read; the file's name tells whether its bytes are right."""
    with suppress(OSError, CheckpointError):
        content = read_file(path, _MOST)
        whole = path.name == f"edits-{hashlib.sha256(content).hexdigest()[:12]}.jsonl"
        lines = [line for line in content.split(b"\n") if line]
        found.records = 0
        for line in lines:
            with suppress(ValueError):
                values = strict_json.loads(line)
                if isinstance(values, dict):  # which says of an edit what a record says
                    _take(Record(0, changes.EDIT, {"paraphrases": [], "keep": [], **values}, {}), whole, found)
        found.unreadable += len(lines) - found.records
