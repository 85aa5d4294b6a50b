"""`Kept`: a memory and the folder that it is loaded from, kept up with, and saved to."""

import os
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import torch

from memoir_fast.config import MemoirConfig
from memoir_fast.errors import CheckpointError, MemoirError
from memoir_fast.hf.tensor_parallel import require_whole
from memoir_fast.io import checkpoint, durable, renewal
from memoir_fast.io.edit_texts import require_fit
from memoir_fast.io.fingerprint import require_same_model
from memoir_fast.io.renewal import Files, Renewed, Source
from memoir_fast.io.writer_lock import WriterLock
from memoir_fast.upkeep import Upkeep

K = TypeVar("K", bound="Kept")


class Kept(Upkeep):
    """A model with a memory that comes from a folder's files, and goes there."""

    _durable: durable.Durable | None = None
    _source: Source | None = None

    @classmethod
    @abstractmethod
    def attach(
        cls: type[K],
        model: Any,
        tokenizer: Any,
        config: MemoirConfig | None = None,
        irrelevant: Sequence[str] | None = None,
    ) -> K:
        """See `Memoir.attach`."""

    @classmethod
    @torch.inference_mode(False)
    def from_pretrained(
        cls: type[K], model: Any, tokenizer: Any, folder: str | os.PathLike, *, check: bool = True, **hub: Any
    ) -> K:
        """Gives `model` the memory that `save_pretrained` wrote.

        Args:
            model, tokenizer: those that the memory was made for; bfloat16 will do for float32, and the other way round.
            folder (str | PathLike): a local folder, or, where there is none of that name, a hub id.
            check (bool): prove on the model that its sequences can be followed, as `attach` does. Default: True.
            **hub: options of `huggingface_hub.snapshot_download`, e.g. revision or token.

        Raises:
            UnsupportedModelError: the model's sequences cannot be followed.
            CheckpointError: a file is missing, damaged, or written by a newer version; or an edit is longer than the
                model's context.
            WrongModelError: the memory belongs to another base model.
            MemoirError: the model has a memory already.
        """
        memoir, files = cls._from_files(model, tokenizer, folder, check, **hub)
        if Path(folder).is_dir():
            memoir._source = Source.of(memoir, folder, files)
        return memoir

    @classmethod
    @torch.inference_mode(False)
    def open(
        cls: type[K], model: Any, tokenizer: Any, folder: str | os.PathLike, config: MemoirConfig | None = None
    ) -> K:
        """Gives `model` the memory of a folder, which is kept up with it: what was acknowledged survives a power cut.

        Each edit, deletion and calibration is in the folder's journal, and synced, before the call that made it
        returns or the iterator gives it. `save_pretrained` to the same folder begins the journal anew, which happens by
        itself when it has outgrown the snapshot; what is set on `layer` by hand is kept from then on. One process at a
        time may have a folder open; others load it by `from_pretrained`, at any time. `close` and `detach` let it go.

        Args:
            model, tokenizer: as in `attach`, or those that the folder's memory was made for.
            folder (str | PathLike): a local folder; where there is no memory in it, an empty one is begun.
            config (MemoirConfig, optional): settings of a memory that is begun. Default: the model's preset.

        Raises:
            LockedError: somebody has it open; the message says who.
            CheckpointError, WrongModelError, UnsupportedModelError, MemoirError: as `attach` and `from_pretrained`; and
                where the model lies on several processes.
            ValueError: config is given, and the folder holds a memory, which has its own.

        Example:
            >>> from memoir_fast import Memoir
            >>> with Memoir.open(model, tokenizer, folder) as memoir:
            ...     memoir.edit("The capital of France is", "Lyon").edit_id
            0
        """
        if not durable.holds(model, folder):
            memoir = cls.attach(model, tokenizer, config)
            try:
                memoir._durable = durable.begin(memoir, folder)
            except BaseException:
                memoir.detach()
                raise
            return memoir
        if config is not None:
            raise ValueError(f"{folder} holds a memory, which has its own settings: open it without config")
        lock = WriterLock(folder)
        try:
            memoir, files = cls._from_files(model, tokenizer, folder, True)
            try:
                memoir._durable = durable.Durable(memoir, lock, files.snapshot)
            except BaseException:
                memoir.detach()
                raise
        except BaseException:
            lock.release()
            raise
        return memoir

    def close(self) -> None:
        """Lets a folder that was opened go: from now on nothing is written there, and others may open it."""
        if self._durable is not None:
            self._durable.close()
            self._source = Source.now(self, self._durable.folder)
            self._durable = None

    def detach(self) -> Any:
        """Takes the memory off, and closes its folder. The model is exactly the old one, and is returned."""
        self.close()
        self._source = None
        return super().detach()

    def __enter__(self: K) -> K:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    @classmethod
    def _from_files(
        cls: type[K], model: Any, tokenizer: Any, folder: str | os.PathLike, check: bool, **hub: Any
    ) -> tuple[K, Files]:
        """The memory of a folder, its journal included, and the state that its files were in."""
        saved, journal = durable.read_pair(folder, **hub)
        require_same_model(saved.folder, saved.fingerprint, model)
        try:
            memoir = cls(model, tokenizer, saved.config.replace(check=check), checkpoint.routing_code(saved, model))
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"the settings in {saved.folder} do not fit the model: {error}") from error
        try:
            checkpoint.fill(memoir, saved)
            durable.replay(memoir, journal)
            require_fit(saved.folder, memoir.edits, model, tokenizer)
        except BaseException:
            memoir.detach()
            raise
        return memoir, Files.of(saved.checksum, journal)

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Writes the memory, not the model, to `folder`; a memory that is there is replaced in one step.

        A crash or a full disk at any moment leaves the earlier one readable.

        Raises:
            CheckpointError: it cannot be written. LockedError: somebody has the folder open.
            MemoirError: this memory was loaded from that folder, and others have written there since: what they changed
                would be lost.
        """
        with self.layer.learning():
            if self._durable is not None and self._durable.is_at(folder):
                self._durable.snapshot()
            else:
                checkpoint.save(self, folder, lambda: self._writing(folder))
                if self._source is not None and self._source.is_at(folder):
                    self._source = Source.now(self, folder)

    @contextmanager
    def _writing(self, folder: str | os.PathLike) -> Iterator[None]:
        """Within the block, files of `folder` may be written, by nobody else where it has been opened before."""
        with durable.writing(folder):
            source = self._source if self._source is not None and self._source.is_at(folder) else None
            if source is not None:
                source.require_nobody_wrote()
            try:
                yield
            except BaseException:
                if source is not None:  # what fails may have been done
                    with suppress(CheckpointError):
                        self._source = source._replace(files=Files.at(folder))
                raise

    @torch.inference_mode(False)
    def undo(self, n: int = 1) -> Renewed:
        """Takes back the last `n` changes that are in the journal of a folder that was opened: as if never made.

        A change is an edit, with the threshold that was chosen with it, a deletion, or a calibration. The memory is
        then in every bit as one that is loaded from the folder; what was set on `layer` by hand since the last snapshot
        goes too. `memoir log` tells what was taken back. Generations that are under way end as they began; further
        steps of a sequence that follows an edit which is gone are the plain model's.

        Args:
            n (int): how many, at least 1. Default: 1.

        Returns:
            Renewed: which edits are live that were not, which are not any more, and which are others: `added`,
            `deleted`, `changed`, lists of ids. An id that is free again is given to the next edit.

        Raises:
            MemoirError: the memory was not opened by `Memoir.open`; there are fewer changes since the last snapshot,
                which cannot be undone; a captured graph may read it (`max_pages` on a GPU).
            ValueError: n is below 1.
            CheckpointError: the folder cannot be read or written. All is as before.

        Example:
            >>> from memoir_fast import Memoir
            >>> with Memoir.open(model, tokenizer, folder) as memoir:
            ...     result = memoir.edit("The capital of France is", "Lyon")
            ...     memoir.undo().deleted, len(memoir.edits)
            ([0], 0)
        """
        with self.layer.learning():
            if self._durable is None:
                raise MemoirError(
                    "undo needs a memory that was opened by Memoir.open, whose journal says what happened"
                )
            return self._renewed(self._durable.undo(n))

    @torch.inference_mode(False)
    def reload(self, *, discard: bool = False) -> Renewed:
        """Takes over what others have written to the folder since, whole or not at all, beside running generations.

        For a memory that `from_pretrained` loaded from a local folder; it then is as one that is loaded anew. The new
        one is read beside the old one, which takes its size again; where nothing has changed, next to nothing is read.
        Generations that are under way end as they began; further steps of a sequence that follows an edit which is gone
        are the plain model's. A memory that has the folder open itself is what the folder says.

        Args:
            discard (bool): let changes go that this memory has had since and the folder has not. Default: refuse.

        Returns:
            Renewed: `added`, `deleted` and `changed`, lists of ids; empty ones where nothing is new.

        Raises:
            CheckpointError: the folder is gone or damaged. WrongModelError, MemoirError: it holds another memory now;
                this one has changes of its own, was not loaded from a local folder, or may be read by a captured graph
                (`max_pages` on a GPU). The memory is as before.

        Example:
            >>> import copy
            >>> from memoir_fast import Memoir
            >>> with Memoir.open(copy.deepcopy(model), tokenizer, folder) as writer:
            ...     memoir = Memoir.from_pretrained(model, tokenizer, folder)
            ...     result = writer.edit("The capital of France is", "Lyon")
            ...     memoir.reload().added, memoir.edits[0].target
            ([0], 'Lyon')
        """
        with self.layer.learning():
            if self._durable is not None:
                return Renewed()
            if self._source is None:
                raise MemoirError("reload needs a memory that from_pretrained loaded from a local folder")
            require_whole(self.model, "Memoir.reload")
            if not discard:
                self._source.require_unchanged(self)
            folder = self._source.folder
            if not discard and Files.at(folder) == self._source.files:
                return Renewed()
            other, files = durable.as_now(self, folder)
            found = self._renewed(renewal.take_over(self, other))
            self._source = Source.of(self, folder, files)
            return found

    def _renewed(self, found: Renewed) -> Renewed:
        self._forget_learning()
        return found
