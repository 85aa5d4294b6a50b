"""An edit's texts as plain values, and the file with a memory's texts: one JSON object per live edit."""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from memoir_fast.core.edit import Edit
from memoir_fast.errors import CheckpointError
from memoir_fast.hf.tokens import context_length, row
from memoir_fast.io import strict_json
from memoir_fast.io.files import read_file

_BYTES = 4  # of a character at most; a token has one at least
_BESIDE = 16  # tokens that a tokenizer may put around a text


def texts_of(edit: Edit) -> dict[str, Any]:
    """An edit's texts as plain values, those that are not empty, and its time where it has one.

    Example:
        >>> from memoir_fast import Edit
        >>> from memoir_fast.io.edit_texts import texts_of
        >>> texts_of(Edit("The capital of France is", "Lyon", author="Jo"))
        {'prompt': 'The capital of France is', 'target': 'Lyon', 'author': 'Jo'}
    """
    further = {
        "bank": edit.bank,
        "paraphrases": list(edit.paraphrases),
        "keep": list(edit.keep),
        "author": edit.author,
        "source": edit.source,
        "subject": edit.subject,
    }
    when = {} if edit.taught_at is None else {"taught_at": edit.taught_at}
    return {
        "prompt": edit.prompt,
        "target": edit.target,
        **{name: texts for name, texts in further.items() if texts},
        **when,
    }


def row_of(edit_id: int, edit: Edit) -> dict[str, Any]:
    """An edit as a row of `memoir edit`, where `paraphrases` are what an edit is measured by."""
    renamed = {"paraphrases": "taught_paraphrases"}
    return {"id": edit_id, **{renamed.get(name, name): value for name, value in texts_of(edit).items()}}


def edit_of(values: Mapping[str, Any]) -> Edit:
    """The edit that such values are of, whatever else is beside them; also of a release that knew fewer fields.

    KeyError, TypeError, ValueError where they are of none.
    """
    lists = {name: values[name] for name in ("paraphrases", "keep") if name in values}
    if not all(isinstance(texts, list) for texts in lists.values()):
        raise ValueError("paraphrases and keep are lists of texts")
    lines = {name: values[name] for name in ("bank", "author", "source", "subject") if name in values}
    further: dict[str, Any] = {**lists, **lines}
    return Edit(values["prompt"], values["target"], **further, taught_at=values.get("taught_at"))


def read_edits(path: Path) -> dict[int, Edit]:
    """The edits of a file by id. CheckpointError, naming the line, where it holds anything else."""
    edits = {}
    prompts: set[tuple[str, str]] = set()
    for number, line in enumerate(BytesIO(read_file(path)), start=1):
        if not line.endswith(b"\n"):
            break
        try:
            edit_id, edit = _parse_edit(strict_json.loads(line))
            if edit_id in edits or (edit.bank, edit.prompt) in prompts:
                raise ValueError(f"the id {edit_id}, or its prompt, comes twice")
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path}, line {number}: {type(error).__name__}: {error}") from error
        edits[edit_id] = edit
        prompts.add((edit.bank, edit.prompt))
    return edits


def require_fit(folder: Path, edits: Mapping[int, Edit], model: Any, tokenizer: Any) -> None:
    """CheckpointError where an edit of a folder is longer than the model's context: it can be neither asked nor taught.

    Texts that are too short for that are not made tokens of: 100,000 of them would take many times as long to open.
    """
    longest = context_length(model)
    if longest is None:
        return
    for edit_id, edit in edits.items():
        if _BYTES * len(edit.prompt + edit.target) + _BESIDE <= longest:
            continue
        try:
            row(tokenizer, edit.prompt, edit.target, longest)
        except ValueError as error:
            raise CheckpointError(f"{folder} holds an edit that the model cannot take, {edit_id}: {error}") from error


def _parse_edit(values: Any) -> tuple[int, Edit]:
    if not isinstance(values, dict):
        raise ValueError(f"expected an object, got a {type(values).__name__}")
    edit_id = values["id"]
    if not isinstance(edit_id, int):
        raise ValueError(f"an id is a whole number, got {edit_id!r}")
    return int(edit_id), edit_of(values)
