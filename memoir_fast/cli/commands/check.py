"""`memoir check`: whether a memory's files are whole."""

from typing import Annotated

import typer

from memoir_fast.cli.options import Json, Quiet, console, require_writable, write_json


def check(
    memory: Annotated[str, typer.Argument(metavar="DIR", help="A saved memory: a folder, or a hub id.")],
    json_file: Json = None,
    quiet: Quiet = False,
) -> None:
    """Verify a memory's snapshot and journal: sizes, digests, every record. Needs no model.

    Exit code 1: something is damaged; the message names the file, and what can still be read.
    """
    from memoir_fast.io.durable import current_edits, read_pair

    require_writable(json_file)
    saved, edits, records = current_edits(memory)
    tail = None
    _, journal = read_pair(memory)
    if journal is not None:
        with journal:
            for _ in journal:
                pass
        tail = journal.tail
    values = {
        "memory": str(saved.folder),
        "edits": len(edits),
        "snapshot_edits": len(saved.edits),
        "records": records,
        "bytes_dropped": 0 if tail is None else tail.bytes_dropped,
    }
    write_json(json_file, values)
    screen = console(json_file, quiet)
    screen.print(f"{len(edits)} edits: {len(saved.edits)} in the snapshot, {records} records since; all are whole")
    if tail is not None:
        screen.print(f"{tail.bytes_dropped} bytes of a record that was never acknowledged are left out", markup=False)
