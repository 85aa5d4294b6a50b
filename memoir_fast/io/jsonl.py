"""JSON lines: one object per line, read with errors that name the line."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memoir_fast.core.edit import Edit


def read_objects(path: str | os.PathLike, fields: Sequence[str]) -> list[tuple[int, dict[str, Any]]]:
    """(line number, object) for each line that is not blank.

    Raises:
        ValueError: a line is no JSON object, or lacks one of `fields`; the message names file and line.
        OSError: the file cannot be read.
    """
    objects = []
    for number, line in enumerate(Path(path).read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: not JSON: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"{path}, line {number}: expected an object, got {type(values).__name__}")
        missing = [name for name in fields if name not in values]
        if missing:
            raise ValueError(f"{path}, line {number}: the field {missing[0]!r} is missing, got {sorted(values)}")
        objects.append((number, values))
    return objects


def read_edits(path: str | os.PathLike) -> list[Edit]:
    """The edits of a file with `prompt` and `target` on each line; other fields are ignored.

    Raises:
        ValueError: a broken line, by file and number, or no line at all.
    """
    edits = []
    for number, values in read_objects(path, ("prompt", "target")):
        try:
            edits.append(Edit(values["prompt"], values["target"]))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    if not edits:
        raise ValueError(f"{path} holds no edits")
    return edits
