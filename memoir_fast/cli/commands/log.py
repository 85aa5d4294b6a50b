"""`memoir log`: what happened to a memory since its snapshot."""

from typing import Annotated, Any

import typer

from memoir_fast.cli.options import Json, Quiet, console, require_writable, write_json
from memoir_fast.cli.plain import cell, moment


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
            records = [{**one.values, "sequence": one.sequence, "kind": one.kind} for one in journal]
    write_json(json_file, {"memory": str(saved.folder), "snapshot_edits": len(saved.edits), "records": records})
    _show(console(json_file, quiet), len(saved.edits), records)


def _show(screen: Any, edits: int, records: list[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table("number", "time", "what", "")
    for record in records:
        table.add_row(str(record["sequence"]), moment(record.get("time")), record["kind"], cell(_words(record)))
    if records:
        screen.print(table)
    screen.print(f"the snapshot holds {edits} edits; {len(records)} records have come since")


def _words(record: dict[str, Any]) -> str:
    if record["kind"].startswith("edit"):
        further = [f"{name} {record[name]}" for name in ("bank", "author", "source") if record.get(name)]
        said = f" ({', '.join(further)})" if further else ""
        return f"{record.get('id')}: {record.get('prompt')} -> {record.get('target')}{said}"
    if record["kind"] == "delete":
        return str(record.get("ids")).strip("[]")
    tau = record.get("tau")
    return f"tau {tau:.4f}" if record["kind"] == "calibration" and isinstance(tau, float) else ""
