"""`memoir check`: whether a memory's files are whole."""

from typing import Annotated

import typer

from memoir_fast.cli.options import Json, Quiet, console, require_writable, write_json


def check(
    memory: Annotated[str, typer.Argument(metavar="DIR", help="A saved memory: a folder, or a hub id.")],
    json_file: Json = None,
    quiet: Quiet = False,
) -> None:
    """Verify a memory's snapshot and journal: sizes, digests, every record, and that they fit. Needs no model.

    Exit code 1: something is damaged; the message names the file, what can still be read, and how it is repaired.
    """
    from memoir_fast.cli.commands.repair import summary
    from memoir_fast.errors import CheckpointError
    from memoir_fast.io.history import History
    from memoir_fast.io.repair import survey

    require_writable(json_file)
    found = survey(memory)
    if found.saved is None or found.damage:
        raise CheckpointError(
            f"{'; '.join(found.damage)}. What can still be read: {summary(found)}: `memoir repair {memory} --to NEW`"
        )
    history = History(found.folder)
    lines = sum(1 for _ in history)
    values = {
        "memory": str(found.folder),
        "edits": len(found.kept),
        "snapshot_edits": len(found.saved.edits),
        "records": found.records,
        "bytes_dropped": found.bytes_dropped,
        "history": lines,
        "history_unreadable": history.unreadable,
    }
    write_json(json_file, values)
    screen = console(json_file, quiet)
    there = len(found.saved.edits)
    screen.print(f"{len(found.kept)} edits: {there} in the snapshot, {found.records} records since; all are whole")
    if found.bytes_dropped:
        screen.print(
            f"{found.bytes_dropped} bytes of a record that was never acknowledged, or is damaged, are left out",
            markup=False,
        )
    if history.unreadable:
        screen.print(
            f"{history.unreadable} lines of {history.path} cannot be read; no answer depends on them", markup=False
        )
