"""`memoir repair`: what is sound of a damaged memory in a new folder, and what is lost by name."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memoir_fast.cli.options import Json, Quiet, console, require_writable, write_json
from memoir_fast.cli.plain import cell, grid, plain

if TYPE_CHECKING:
    from memoir_fast.io.repair import Survey

LOST = 3
SHOWN = 50  # rows of a table


def repair(
    memory: Annotated[str, typer.Argument(metavar="DIR", help="A damaged memory; it is not changed.")],
    to: Annotated[Path, typer.Option("--to", metavar="NEW", help="A folder that is not there yet.")],
    json_file: Json = None,
    quiet: Quiet = False,
) -> None:
    """Write what is sound of a memory to a new folder, and what is lost as texts beside it. Needs no model.

    NEW is a memory up to the damage; NEW/lost-edits.jsonl holds the edits behind it, for `memoir edit`, and
    NEW/unsure-edits.jsonl those whose own bytes are damaged: look at them first.

    Exit code 3: something is lost, or may be.
    """
    from memoir_fast.io import repair as repairs

    require_writable(json_file)
    found = repairs.repair(memory, to)
    write_json(json_file, _values(found, to))
    _show(console(json_file, quiet), found, to)
    if found.anything_lost:
        raise typer.Exit(LOST)


def _values(found: "Survey", to: Path) -> dict[str, Any]:
    def rows(edits: dict[int, Any]) -> list[dict[str, Any]]:
        return [{"id": one, "prompt": edit.prompt, "target": edit.target} for one, edit in sorted(edits.items())]

    return {
        "memory": str(found.folder),
        "to": str(to),
        "damage": found.damage,
        "snapshot_kept": found.saved is not None,
        "kept": sorted(found.kept),
        "records_kept": found.records,
        "deleted": found.carried,
        "lost": rows(found.lost),
        "unsure": rows(found.unsure),
        "unreadable_records": found.unreadable,
        "bytes_dropped": found.bytes_dropped,
    }


def _show(screen: Any, found: "Survey", to: Path) -> None:
    for one in found.damage:
        screen.print(plain(one), markup=False)
    for title, edits in (("lost", found.lost), ("damaged: look before you teach them", found.unsure)):
        table = grid("id", "prompt", "target", "the memory says", title=title)
        for edit_id, edit in sorted(edits.items())[:SHOWN]:
            still = found.kept.get(edit_id)
            table.add_row(
                *(cell(one) for one in (str(edit_id), edit.prompt, edit.target, still.target if still else ""))
            )
        if edits:
            screen.print(table)
        if len(edits) > SHOWN:
            screen.print(f"and {len(edits) - SHOWN} more, in {to}", markup=False)
    screen.print(summary(found), markup=False)
    screen.print(f"written to {to}", markup=False)


def summary(found: "Survey") -> str:
    """What can be kept of a folder, and what cannot, in a sentence."""
    parts = [
        f"{len(found.kept)} edits are kept, {found.records} records of the journal with them"
        if found.saved is not None
        else "no memory can be kept, texts alone"
    ]
    parts += [f"{len(found.carried)} deletions behind the damage are carried over"] if found.carried else []
    parts += [f"{len(found.lost)} edits are lost but for their texts"] if found.lost else []
    parts += [f"{len(found.unsure)} more have damaged texts"] if found.unsure else []
    parts += [f"of at least {found.unreadable} further records nothing can be kept"] if found.unreadable else []
    return "; ".join(parts) if found.anything_lost or found.damage else parts[0] + "; nothing is lost"
