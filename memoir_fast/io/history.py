"""What ever happened to a memory's folder, a line for each record that its journals had.

A snapshot takes the journal's place; what the journal told is put down here before, in `history.jsonl`: JSON lines with
the record's kind and time, ids, and the beginnings of texts. No memory is read from it, so what stands there changes
no answer. A line names its journal and its number there, so that none is put down twice.
"""

import io
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from memoir_fast.atomic import replace, sync_names
from memoir_fast.errors import CheckpointError
from memoir_fast.io import strict_json
from memoir_fast.io.files import open_file
from memoir_fast.io.journal import JournalReader
from memoir_fast.io.records import Record

HISTORY_NAME = "history.jsonl"
UNDO = "undo"
"""The kind of a record that says what was taken back; what stands before it in its journal is in the history."""
MERGE = "merge"
"""The kind of a line that tells of a snapshot which has another memory's edits in it."""

_LONGEST_LINE = 1 << 16  # bytes
_LONGEST_TEXT, _LONGEST_UNDONE = 200, 80  # characters
_MOST_IDS, _MOST_UNDONE = 100, 20
_TEXTS = ("prompt", "target", "subject", "bank", "author", "source")

_log = logging.getLogger("memoir_fast")


def told(record: Record) -> dict[str, Any]:
    """What a record says, in short: sequence, kind and time, and of its values those that a reader looks for."""
    return {"sequence": record.sequence, **_short(record.kind, record.values, _LONGEST_TEXT)}


def undone(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The values of a record that says that this, as `told`, was taken back; its time aside."""
    shown = [_short(line["kind"], line, _LONGEST_UNDONE) for line in lines[-_MOST_UNDONE:]]
    return {"undone": shown, "count": len(lines)}


class History(Iterator[dict[str, Any]]):
    """The lines of a folder's history, oldest first, one at a time; none where it has no history.

    A line that cannot be read, of whatever a stranger or a broken disk wrote, is left out and counted.

    Args:
        folder (path): a memory's.

    Raises:
        CheckpointError: the history is no file, or cannot be read.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.path = Path(folder) / HISTORY_NAME
        self.unreadable = 0
        """Lines that were left out so far."""
        self.end = 0
        """Behind the last whole line that was read."""
        self._file: io.BufferedReader | None = None
        try:
            self._file = io.BufferedReader(open_file(self.path))
        except FileNotFoundError:
            pass
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {error}") from error

    def __next__(self) -> dict[str, Any]:
        while self._file is not None:
            try:
                line, size = self._line(self._file)
            except OSError as error:
                raise CheckpointError(f"{self.path} cannot be read: {error}") from error
            if not size:
                self._file.close()
                self._file = None
                break
            self.end += size
            found = _parse(line)
            if found is not None:
                return found
            self.unreadable += 1
        raise StopIteration

    @staticmethod
    def _line(file: io.BufferedReader) -> tuple[bytes, int]:
        """The next whole line, b"" for one that is too long, and how many bytes it has: 0 at the end."""
        line = part = file.readline(_LONGEST_LINE)
        size = len(line)
        while part and not part.endswith(b"\n"):
            line, part = b"", file.readline(_LONGEST_LINE)
            size += len(part)
        return line, size if part else 0


def happened(history: History, journal: JournalReader | None) -> Iterator[dict[str, Any]]:
    """What a history tells, oldest first, and then what its journal tells besides: as `told`, with "journal".

    The journal is opened before: what a snapshot moves from there to the history meanwhile is told once.

    Raises:
        CheckpointError: either cannot be read, or the journal is damaged.

    Example:
        >>> import tempfile
        >>> from memoir_fast.io.history import History, happened, keep
        >>> from memoir_fast.io.journal import Journal, read
        >>> from memoir_fast.io.writer_lock import WriterLock
        >>> with WriterLock(tempfile.mkdtemp()) as lock, Journal(lock, "ab" * 32) as journal:
        ...     journal.append("delete", {"ids": [3], "time": 7.0})
        ...     keep(lock.folder, read(journal.path))
        ...     journal.append("delete", {"ids": [4], "time": 8.0})
        ...     [line["ids"] for line in happened(History(lock.folder), read(journal.path))]
        1
        1
        2
        [[3], [4]]
    """
    identity = None if journal is None else journal.header.identity
    seen = set()
    for line in history:
        if line["journal"] == identity:
            seen.add(line["sequence"])
        yield line
    if journal is not None:
        yield from ({"journal": identity, **line} for line in _own(journal) if line["sequence"] not in seen)


def keep(folder: Path, journal: JournalReader) -> int:
    """Puts down in a folder's history what it lacks of a journal; how many lines these are. They are synced then.

    The folder's lock must be held. Of a damaged journal, what comes before the damage is put down, and the log says so.

    Raises:
        CheckpointError: the history cannot be read or written; it tells what it told before.
    """
    history, identity = History(folder), journal.header.identity
    seen = {line["sequence"] for line in history if line["journal"] == identity}
    lines: list[dict[str, Any]] = []
    try:
        _gather(journal, lines)
    except CheckpointError as error:
        _log.warning("%s tells what comes before the damage alone: %s", history.path, error)
    new = [{"journal": identity, **line} for line in lines if line["sequence"] not in seen]
    if new:
        _put_down(history, new)
    return len(new)


def begun(folder: Path, journal: str, kind: str, values: Mapping[str, Any]) -> None:
    """Puts down what a snapshot came of that no journal tells of, under the journal that begins with it, as number 0.

    The folder's lock must be held. CheckpointError: the history cannot be read or written.
    """
    history = History(folder)
    for _ in history:
        pass
    _put_down(history, [{"journal": journal, "sequence": 0, **_short(kind, values, _LONGEST_TEXT)}])


def _put_down(history: History, lines: list[dict[str, Any]]) -> None:
    """Appends lines to a history that was read to its end."""
    try:
        _append(history.path, history.end, b"".join(strict_json.dumps(line) + b"\n" for line in lines))
    except OSError as error:
        raise CheckpointError(f"{history.path} cannot be written: {error}") from error


def _own(journal: JournalReader) -> list[dict[str, Any]]:
    """What a journal tells that no earlier one has told: before a record of undoing, it holds copies."""
    lines: list[dict[str, Any]] = []
    _gather(journal, lines)
    return lines


def _gather(journal: JournalReader, lines: list[dict[str, Any]]) -> None:
    for record in journal:
        if record.kind == UNDO:
            lines.clear()
        lines.append(told(record))


def _append(path: Path, end: int, content: bytes) -> None:
    """Puts whole lines behind the last whole line; what a crash left of another is cut off."""
    if not os.path.lexists(path):
        replace(path, b"")
        sync_names(path.parent)
    with open_file(path, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW) as file:
        os.ftruncate(file.fileno(), end)
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(file.fileno(), rest) :]
            os.fsync(file.fileno())
        except BaseException:
            os.ftruncate(file.fileno(), end)
            raise


def _short(kind: str, values: Mapping[str, Any], longest: int) -> dict[str, Any]:
    """What a record says, as far as it is of the types that it should be, whoever wrote it."""
    found: dict[str, Any] = {"kind": kind, "time": _number(values.get("time"))}
    if kind.startswith("edit"):
        texts = {name: values[name] for name in _TEXTS if isinstance(values.get(name), str) and values[name]}
        found |= {"id": _number(values.get("id")), **{name: _cut(text, longest) for name, text in texts.items()}}
    elif kind == "delete":
        ids = values["ids"] if isinstance(values.get("ids"), list) else []
        found |= {"ids": [_number(one) for one in ids[:_MOST_IDS]], "count": len(ids)}
    elif kind == "calibration":
        found["tau"] = _number(values.get("tau"))
    elif kind == MERGE:
        found |= {name: _number(values.get(name)) for name in ("added", "same", "conflicts")}
        if isinstance(source := values.get("source"), str):
            found["source"] = _cut(source, longest)
    elif kind == UNDO:
        taken = values["undone"] if isinstance(values.get("undone"), list) else []
        sound = [one for one in taken[:_MOST_UNDONE] if isinstance(one, dict) and isinstance(one.get("kind"), str)]
        shown = [_short(one["kind"], one, _LONGEST_UNDONE) for one in sound if one["kind"] != UNDO]
        found |= {"undone": shown, "count": _number(values.get("count"))}
    return found


def _number(value: Any) -> int | float | None:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _parse(line: bytes) -> dict[str, Any] | None:
    """A line's values, in short; None where it is no line of a history."""
    try:
        values = strict_json.loads(line)
        kind, journal, sequence = values["kind"], values["journal"], values["sequence"]
    except (ValueError, KeyError, TypeError):
        return None
    if not isinstance(kind, str) or not isinstance(journal, str) or type(sequence) is not int:
        return None
    return {"journal": journal[:32], "sequence": sequence, **_short(kind[:32], values, _LONGEST_TEXT)}
