"""The exceptions that this package raises beside the built-in TypeError and ValueError."""


class MemoirError(Exception):
    """Base of every error about the state of a memory or its files."""


class BackendError(MemoirError):
    """A backend that was asked for by name cannot serve an operation; the message says why."""


class CheckpointError(MemoirError):
    """A saved memory is missing, damaged, or written by a newer version."""


class NewerVersionError(CheckpointError):
    """A saved memory was written by a newer version: it is not damaged, and this version cannot read it."""


class LockedError(MemoirError):
    """Another process, or another part of this one, writes to the memory's folder; the message says which."""


class WrongModelError(CheckpointError):
    """A saved memory belongs to another base model than the one given."""


class StoreFullError(MemoirError):
    """The store holds `max_edits` edits; nothing was written."""


class UnknownEditError(MemoirError, KeyError):
    """No live edit has the given id."""

    def __str__(self) -> str:
        return str(self.args[0])


class UnsupportedModelError(MemoirError):
    """A memory cannot serve this model: no preset knows its layer, or what routing relies on was not found in it."""


class PackedBatchError(MemoirError):
    """A forward pass holds several sequences in one row, which a memory cannot route one by one."""
