"""A memory that goes to another state at once: to what a folder's files say, while generations run on as they began."""

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from memoir_fast.core.edit import Edit
from memoir_fast.core.edited_model import EditedModel
from memoir_fast.core.live_edits import LiveEdits
from memoir_fast.errors import CheckpointError, MemoirError
from memoir_fast.io import changes, checkpoint, codes
from memoir_fast.io.checkpoint import SavedMemory
from memoir_fast.io.edit_texts import require_fit
from memoir_fast.io.fingerprint import require_same_model
from memoir_fast.io.journal import JournalReader, journal_path, read
from memoir_fast.io.records import Record
from memoir_fast.io.without_model import without_model
from memoir_fast.modules import MemoirLinear

_OF_MEMOIR = ("prefixes", "calibration", "background", "config")


@dataclass(frozen=True)
class Renewed:
    """Which edits are others now."""

    added: list[int] = field(default_factory=list)
    """Ids that are live now, and were not."""
    deleted: list[int] = field(default_factory=list)
    """Ids that were live, and are not."""
    changed: list[int] = field(default_factory=list)
    """Ids whose edit is another: its target, or what it was given besides."""


class Files(NamedTuple):
    """Which state a folder's files are in."""

    snapshot: str
    journal: str | None = None
    """The identity of its journal; None where it has none."""
    size: int = 0
    """The journal's bytes."""

    @classmethod
    def of(cls, snapshot: str, journal: JournalReader | None) -> "Files":
        """That of a pair that was read."""
        return cls(snapshot) if journal is None else cls(snapshot, journal.header.identity, journal.size)

    @classmethod
    def at(cls, folder: str | os.PathLike) -> "Files":
        """That of a local folder now; CheckpointError where there is none, or it is being renewed."""
        snapshot = checkpoint.checksum_of(folder)
        path = journal_path(folder, snapshot)
        if not path.exists():
            return cls(snapshot)
        with read(path, snapshot) as journal:
            return cls.of(snapshot, journal)


class Source(NamedTuple):
    """Where a memory comes from, and what it was like when it was as the files say."""

    folder: Path
    files: Files
    own: tuple[Any, ...]

    @classmethod
    def of(cls, memoir: EditedModel, folder: str | os.PathLike, files: Files) -> "Source":
        """That of a memory that is as these files say."""
        return cls(Path(folder).absolute(), files, state(memoir))

    @classmethod
    def now(cls, memoir: EditedModel, folder: str | os.PathLike) -> "Source | None":
        """That of a memory whose folder was just let go, or saved to; None where it is gone."""
        with suppress(CheckpointError):
            return cls.of(memoir, folder, Files.at(folder))
        return None

    def is_at(self, folder: str | os.PathLike) -> bool:
        """Whether that is the folder."""
        with suppress(OSError):
            return os.path.samefile(folder, self.folder)
        return False

    def require_unchanged(self, memoir: EditedModel) -> None:
        """MemoirError where the memory has been changed since."""
        if state(memoir) != self.own:
            raise MemoirError(
                f"this memory was changed since it was loaded from {self.folder}, and that is not in the folder: save "
                "it elsewhere, and merge it there, or let it go by reload(discard=True)"
            )

    def require_nobody_wrote(self) -> None:
        """MemoirError where the folder's files are others than they were; files that cannot be read may be lost."""
        with suppress(CheckpointError):
            if Files.at(self.folder) != self.files:
                raise MemoirError(
                    f"others have written to {self.folder} since this memory was loaded from it, which would be lost: "
                    "save it elsewhere, and merge it there; reload() takes over what they have written"
                )


def state(memoir: EditedModel) -> tuple[Any, ...]:
    """What is another whenever a memory has changed."""
    layer = memoir.layer
    return layer.written, layer.store.stamp, len(layer.store), layer.tau, memoir.calibration


def beside(memoir: EditedModel, saved: SavedMemory, records: Iterable[Record]) -> Any:
    """The memory that a folder describes, on the same base layer; `memoir` is as it was.

    Args:
        memoir (EditedModel): whose place it shall take.
        saved (SavedMemory), records (iterable of Record): a snapshot, and what came since.

    Raises:
        MemoirError: it is another memory than `memoir`, or that one may not move. WrongModelError: of another model.
        CheckpointError: a record does not fit, or an edit is longer than the model's context.
    """
    require_same_model(saved.folder, saved.fingerprint, memoir.model)
    table = memoir.layer.memory.table
    if memoir.layer.memory.max_pages is not None and table.is_cuda:
        raise MemoirError(
            "with max_pages on a GPU, a captured graph may read the memory where it is, and would go on reading the "
            "old one: detach it, and load the folder anew"
        )
    other = without_model(saved, memoir.layer.base)
    _require_alike(memoir, saved, other.layer)
    for record in records:
        changes.apply(other, record)
    require_fit(saved.folder, other.edits, memoir.model, memoir.tokenizer)
    other.config = saved.config.replace(check=memoir.config.check)
    return other


def _require_alike(memoir: EditedModel, saved: SavedMemory, layer: MemoirLinear) -> None:
    own, names = memoir.layer, ("k", "routing", "layer", "further", "seed")
    different = [name for name in names if getattr(memoir.config, name) != getattr(saved.config, name)]
    tensors, others = ({"mu": one.mu, "permutation": one.permutation, **codes.tensors(one)} for one in (own, layer))
    different += [
        name
        for name, tensor in tensors.items()
        if not name.startswith("rows_") and not torch.equal(tensor, others.get(name, torch.empty(0)).to(tensor.device))
    ]
    if different or codes.values(own) != codes.values(layer):
        raise MemoirError(
            f"{saved.folder} holds another memory than it did ({', '.join(different) or 'how codes are made'}): detach "
            "this one, and load that by from_pretrained"
        )


def take_over(memoir: EditedModel, other: Any) -> Renewed:
    """A memory takes the place of another, in one step, and for all but the generations that are under way.

    Args:
        memoir (EditedModel): whose edits, pages, codes, thresholds and settings change; nobody else may be changing it.
        other: what `beside` gave; it is not to be used any more.
    """
    layer, before, now = memoir.layer, dict(memoir.edits), dict(other.edits)
    same = [_same(before.get(one), now.get(one)) for one in range(len(layer.store))]
    other.layer.store.succeed(layer.store, torch.tensor(same, dtype=torch.bool))
    pairs = [(layer, other.layer, MemoirLinear.content), (memoir.edits, other.edits, LiveEdits.content)]
    new = [
        (owner, name, getattr(source, name))
        for owner, source, names in [*pairs, (memoir, other, _OF_MEMOIR)]
        for name in names
    ]
    old = [(owner, name, getattr(owner, name)) for owner, name, _ in new]
    with layer.changing():
        try:
            for one in [*new, (layer, "written", layer.written + 1)]:
                setattr(*one)
        except BaseException:
            for one in old:
                setattr(*one)
            raise
    return Renewed(
        sorted(now.keys() - before.keys()),
        sorted(before.keys() - now.keys()),
        sorted(one for one in now.keys() & before.keys() if now[one] != before[one]),
    )


def _same(before: Edit | None, now: Edit | None) -> bool:
    """Whether a sequence that has followed the one edit may follow the other, of the same id."""
    return before is not None and now is not None and (before.prompt, before.bank) == (now.prompt, now.bank)
