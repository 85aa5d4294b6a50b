"""Where a memory's folder is: what a caller calls it, in this machine or on the hub."""

import os
import re
from pathlib import Path
from typing import Any

from memoir_fast.errors import CheckpointError
from memoir_fast.io.history import HISTORY_NAME

CONFIG_NAME = "memory_config.json"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def named(folder: str | os.PathLike) -> Path:
    """The path of a folder, there already or not.

    Raises:
        ValueError: it is empty, as a variable that nobody has set: "." is the folder at hand.
        CheckpointError: nothing can have that name, as one that is longer than the system takes.

    Example:
        >>> from memoir_fast.io.folders import named
        >>> named("corrections").name
        'corrections'
        >>> named("")
        Traceback (most recent call last):
            ...
        ValueError: a memory's folder must have a name, got '': the folder at hand is '.'
    """
    if not os.fspath(folder):
        raise ValueError("a memory's folder must have a name, got '': the folder at hand is '.'")
    path = Path(folder)
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{str(path)[:200]!r} cannot be a memory's folder: {_why(error)}") from None
    return path


def _why(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def local(folder: str | os.PathLike, hub: dict[str, Any]) -> Path:
    """The folder itself, or what the hub has under that name; CheckpointError where there is neither."""
    path = named(folder)
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(f"{path} is no folder: a memory is a folder with a {CONFIG_NAME}")
    if not _HUB_ID.fullmatch(str(folder)):
        raise CheckpointError(f"there is no folder {path}")
    patterns = [CONFIG_NAME, "memory-*.safetensors", "edits-*.jsonl", "journal-*.log", HISTORY_NAME]
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(str(folder), allow_patterns=patterns, **hub))
    except Exception as error:  # the hub's client has many kinds, of several libraries
        raise CheckpointError(f"there is no folder {path}, and the hub gave none: {error}") from error
