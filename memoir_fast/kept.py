"""`Kept`: a memory and the folder that it is loaded from, kept up with, and saved to."""

import os
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, TypeVar

import torch

from memoir_fast.config import MemoirConfig
from memoir_fast.errors import CheckpointError
from memoir_fast.io import checkpoint, durable
from memoir_fast.io.fingerprint import require_same_model
from memoir_fast.io.writer_lock import WriterLock
from memoir_fast.upkeep import Upkeep

K = TypeVar("K", bound="Kept")


class Kept(Upkeep):
    """A model with a memory that comes from a folder's files, and goes there."""

    _durable: durable.Durable | None = None

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
            model, tokenizer: those that the memory was made for; another floating dtype will do.
            folder (str | PathLike): a local folder, or, where there is none of that name, a hub id.
            check (bool): prove on the model that its sequences can be followed, as `attach` does. Default: True.
            **hub: options of `huggingface_hub.snapshot_download`, e.g. revision or token.

        Raises:
            UnsupportedModelError: the model's sequences cannot be followed.
            CheckpointError: a file is missing, damaged, or written by a newer version.
            WrongModelError: the memory belongs to another base model.
            MemoirError: the model has a memory already.
        """
        memoir, _ = cls._from_files(model, tokenizer, folder, check, **hub)
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
            memoir, checksum = cls._from_files(model, tokenizer, folder, True)
            try:
                memoir._durable = durable.Durable(memoir, lock, checksum)
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
            self._durable = None

    def detach(self) -> Any:
        """Takes the memory off, and closes its folder. The model is exactly the old one, and is returned."""
        self.close()
        return super().detach()

    def __enter__(self: K) -> K:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    @classmethod
    def _from_files(
        cls: type[K], model: Any, tokenizer: Any, folder: str | os.PathLike, check: bool, **hub: Any
    ) -> tuple[K, str]:
        """The memory of a folder, its journal included, and its snapshot's checksum."""
        saved, journal = durable.read_pair(folder, **hub)
        require_same_model(saved.folder, saved.fingerprint, model)
        try:
            memoir = cls(model, tokenizer, saved.config.replace(check=check), checkpoint.routing_code(saved, model))
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"the settings in {saved.folder} do not fit the model: {error}") from error
        try:
            checkpoint.fill(memoir, saved)
            durable.replay(memoir, journal)
        except BaseException:
            memoir.detach()
            raise
        return memoir, saved.checksum

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Writes the memory, not the model, to `folder`; a memory that is there is replaced in one step.

        A crash or a full disk at any moment leaves the earlier one readable; CheckpointError where it cannot be
        written, LockedError where somebody has the folder open.
        """
        with self.layer.learning():
            if self._durable is not None and self._durable.is_at(folder):
                self._durable.snapshot()
            else:
                checkpoint.save(self, folder, lambda: durable.writing(folder))
