"""`memoir log`: what ever happened to a memory."""

from collections import deque
from typing import Annotated, Any

import typer

from memoir_fast.cli.options import Json, Quiet, console, require_writable, write_json
from memoir_fast.cli.plain import cell, grid, moment

SHOWN = 50  # records on the terminal, where it is not said how many


def log(
    memory: Annotated[str, typer.Argument(metavar="DIR", help="A folder that was opened by Memoir.open.")],
    last: Annotated[
        int | None,
        typer.Option("--last", min=1, metavar="N", help="Only the last so many. Default: all in the JSON, 50 shown."),
    ] = None,
    json_file: Json = None,
    quiet: Quiet = False,
) -> None:
    """Show what ever happened to a memory, oldest first: edits, deletions, thresholds, with their times.

    Its history comes first, and then what is in its journal, since the last snapshot. Needs no model.
    """
    from memoir_fast.io.durable import read_pair
    from memoir_fast.io.history import History, happened

    require_writable(json_file)
    saved, journal = read_pair(memory)
    most = last or (SHOWN if json_file is None else None)
    history, shown = History(saved.folder), deque[dict[str, Any]](maxlen=most)
    number = 0
    for number, record in enumerate(happened(history, journal), start=1):
        shown.append({"number": number, **record})
    records = list(shown)
    since = 0 if journal is None else journal.frames.records
    values = {
        "memory": str(saved.folder),
        "snapshot_edits": len(saved.edits),
        "since_snapshot": since,
        "unreadable": history.unreadable,
        "records": records,
    }
    write_json(json_file, values)
    screen = console(json_file, quiet)
    shown_here = records if last else records[-SHOWN:]
    _show(screen, shown_here)
    if number > len(shown_here):
        screen.print(f"and {number - len(shown_here)} before these; --last N shows more")
    if history.unreadable:
        screen.print(f"{history.unreadable} lines of {history.path} cannot be read", markup=False)
    screen.print(f"the snapshot holds {len(saved.edits)} edits; {since} records have come since")


def _show(screen: Any, records: list[dict[str, Any]]) -> None:
    table = grid("number", "time", "what", "")
    for record in records:
        table.add_row(str(record["number"]), moment(record["time"]), cell(record["kind"]), cell(words(record)))
    if records:
        screen.print(table)


def words(record: dict[str, Any]) -> str:
    """What a line of a history says, in words."""
    kind = record["kind"]
    if kind.startswith("edit"):
        further = [f"{name} {record[name]}" for name in ("subject", "bank", "author", "source") if name in record]
        said = f" ({', '.join(further)})" if further else ""
        return f"{record['id']}: {record.get('prompt')} -> {record.get('target')}{said}"
    if kind == "delete":
        more = record["count"] - len(record["ids"])
        return ", ".join(map(str, record["ids"])) + (f" and {more} more" if more > 0 else "")
    if kind == "calibration":
        return "" if record["tau"] is None else f"tau {record['tau']:.4f}"
    if kind == "merge":
        counts = {name: record[name] or 0 for name in ("added", "same", "conflicts")}
        return (
            f"{counts['added']} edits of {record.get('source')} taken over, {counts['same']} were here, "
            f"{counts['conflicts']} conflicts"
        )
    if kind == "undo":
        return "; ".join(f"{one['kind']} {words(one)}" for one in record["undone"])
    return ""
