"""Records of a JSON list or of JSON lines, one at a time, each with the line that it starts on."""

import codecs
import json
import os
from collections.abc import Iterator
from typing import Any

_CHUNK = 1 << 16
_SPACE = " \t\n\r"


def objects(path: str | os.PathLike) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, object) of each record of a file: a JSON list of objects, or one object after another (JSON lines).

    Only the record at hand and the rest of its block are in memory.

    Raises:
        ValueError: a byte that is not UTF-8, a record that is no object, a file that ends within a record or before its
            list is closed, or holds nothing; the message names file and line.
        OSError: the file cannot be read.
    """
    source = _Text(path)
    first = source.peek()
    if not first:
        raise ValueError(f"{path} is empty")
    if first != "[":
        while source.peek():
            yield source.record()
        return
    source.skip(1)
    if source.peek() == "]":
        raise ValueError(f"{path} holds an empty list")
    while True:
        yield source.record()
        mark = source.peek()
        if mark not in (",", "]"):
            source.fail("the list is not closed" if not mark else f"expected ',' or ']', got {mark!r}")
        source.skip(1)
        if mark == "]":
            break
    if source.peek():
        source.fail("there is text after the list's end")


class _Text:
    """A text file read in blocks, that knows its line."""

    def __init__(self, path: str | os.PathLike) -> None:
        self.line = 1
        self._path, self._buffer, self._ended = path, "", False
        self._place = 0
        self._blocks = self._decoded()
        self._parse = json.JSONDecoder().raw_decode

    def peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            while self._place < len(self._buffer):
                character = self._buffer[self._place]
                if character not in _SPACE:
                    return character
                self.skip(1)
            if not self._more():
                return ""

    def skip(self, characters: int) -> None:
        """Goes on by so many."""
        end = self._place + characters
        self.line += self._buffer.count("\n", self._place, end)
        self._place = end

    def record(self) -> tuple[int, dict[str, Any]]:
        """The object that starts at the next character, after the line that it starts on."""
        if not self.peek():
            self.fail("the file ends where a record was expected: is it half downloaded?")
        if self.peek() != "{":
            got = self._buffer[self._place : self._place + 20]
            self.fail(
                f"expected an object, got {got!r}; "
                'a file is a JSON list of objects, or JSON lines: {"prompt": "...", ...}'
            )
        wanted, line = 2 * _CHUNK, self.line
        while True:
            place = self._place
            try:
                values, end = self._parse(self._buffer, self._place)
            except (json.JSONDecodeError, RecursionError) as error:
                if isinstance(error, RecursionError) or not self._more(wanted):
                    if isinstance(error, json.JSONDecodeError):
                        at = self._place + error.pos - place
                        self.line += self._buffer.count("\n", self._place, at)
                        if at >= len(self._buffer.rstrip()) or "Unterminated" in error.msg:
                            self.fail("the file ends within a record: is it half downloaded?")
                    self.fail(f"not JSON: {getattr(error, 'msg', error)}")
                wanted *= 2
                continue
            self.skip(end - self._place)
            return line, values

    def fail(self, reason: str) -> None:
        """Raises ValueError at the line at hand."""
        raise ValueError(f"{self._path}, line {self.line}: {reason}")

    def _more(self, characters: int = 1) -> bool:
        """Reads on; False at the end of the file."""
        parts, read = [self._buffer[self._place :]], 0
        self._place = 0
        for block in self._blocks:
            parts.append(block)
            read += len(block)
            if read >= characters:
                break
        self._buffer = "".join(parts)
        return read > 0

    def _decoded(self) -> Iterator[str]:
        decoder, line = codecs.getincrementaldecoder("utf-8")(), 1
        with open(self._path, "rb") as file:
            first = True
            while True:
                block = file.read(_CHUNK)
                if first:
                    block, first = block.removeprefix(codecs.BOM_UTF8), False
                try:
                    text = decoder.decode(block, final=not block)
                except UnicodeDecodeError as error:
                    line += error.object.count(b"\n", 0, error.start)
                    byte = error.object[error.start]
                    raise ValueError(
                        f"{self._path}, line {line}: byte 0x{byte:02x} is not UTF-8; save it as UTF-8"
                    ) from error
                line += text.count("\n")
                yield text
                if not block:
                    return
