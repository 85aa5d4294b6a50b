"""`memoir log`: what happened to a memory since its snapshot."""

import time
from typing import Annotated, Any

import typer

from memoir_fast.cli.options import Json, Quiet, console, require_writable, write_json


def log(
    memory: Annotated[str, typer.Argument(metavar="DIR", help="A folder that was opened by Memoir.open.")],
    json_file: Json = None,
    quiet: Quiet = False,
) -> None:
    """Show what is in a memory's journal: edits, deletions, thresholds, with their times. Needs no model."""
    from memoir_fast.io.durable import read_pair

    require_writable(json_file)
    saved, journal = read_pair(memory)
    records: list[dict[str, Any]] = []
    if journal is not None:
        with journal:
            records = [{"sequence": one.sequence, "kind": one.kind, **one.values} for one in journal]
    write_json(json_file, {"memory": str(saved.folder), "snapshot_edits": len(saved.edits), "records": records})
    _show(console(json_file, quiet), len(saved.edits), records)


def _show(screen: Any, edits: int, records: list[dict[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("number", "time", "what", "")
    for record in records:
        moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.get("time", 0)))
        table.add_row(str(record["sequence"]), moment, record["kind"], Text(_words(record)))
    if records:
        screen.print(table)
    screen.print(f"the snapshot holds {edits} edits; {len(records)} records have come since")


def _words(record: dict[str, Any]) -> str:
    if record["kind"] == "edit":
        return f"{record['id']}: {record['prompt']} -> {record['target']}"
    if record["kind"] == "delete":
        return ", ".join(map(str, record["ids"]))
    return f"tau {record['tau']:.4f}" if record["kind"] == "calibration" else ""
