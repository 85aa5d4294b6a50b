"""`memoir undo`: takes back the last changes of a memory."""

from typing import Annotated, Any

import typer

from memoir_fast.cli.commands.log import words
from memoir_fast.cli.options import Json, Quiet, console, require_writable, write_json
from memoir_fast.cli.plain import cell, grid, moment


def undo(
    memory: Annotated[str, typer.Argument(metavar="DIR", help="A folder that was opened by Memoir.open.")],
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="How many changes to take back.")] = 1,
    json_file: Json = None,
    quiet: Quiet = False,
) -> None:
    """Take back the last changes since the snapshot, as if they had never been made. Needs no model.

    Nobody may have the folder open. `memoir log` shows what was taken back.
    """
    from memoir_fast.io.durable import current_edits
    from memoir_fast.io.undo import undo as take_back

    require_writable(json_file)
    undone = take_back(memory, number)
    edits = len(current_edits(memory)[1])
    write_json(json_file, {"memory": memory, "edits": edits, "undone": undone})
    _show(console(json_file, quiet), undone, edits)


def _show(screen: Any, undone: list[dict[str, Any]], edits: int) -> None:
    table = grid("time", "what was taken back", "")
    for record in undone:
        table.add_row(moment(record["time"]), cell(record["kind"]), cell(words(record)))
    screen.print(table)
    screen.print(f"the memory holds {edits} edits")
