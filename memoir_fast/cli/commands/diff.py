"""`memoir diff`: which edits two memories do not share."""

from typing import Annotated, Any

import typer

from memoir_fast.cli.options import Json, Quiet, console, require_writable, write_json
from memoir_fast.cli.plain import cell, grid

SHOWN = 50  # edits on the terminal


def diff(
    one: Annotated[str, typer.Argument(metavar="A", help="A saved memory.")],
    other: Annotated[str, typer.Argument(metavar="B", help="Another.")],
    json_file: Json = None,
    quiet: Quiet = False,
) -> None:
    """List edits that only one of two memories has, or that have another target there. Needs no model."""
    from memoir_fast.io.durable import current_edits

    require_writable(json_file)
    first, second = (
        {(edit.bank, edit.prompt): edit.target for edit in current_edits(folder)[1].values()} for folder in (one, other)
    )
    rows = [
        {"bank": bank, "prompt": prompt, "a": first.get((bank, prompt)), "b": second.get((bank, prompt))}
        for bank, prompt in dict.fromkeys([*first, *second])
        if first.get((bank, prompt)) != second.get((bank, prompt))
    ]
    same = len(first.keys() & second.keys()) - _changed(rows)
    write_json(json_file, {"a": one, "b": other, "same": same, "rows": rows})
    _show(console(json_file, quiet), rows)


def _changed(rows: list[dict[str, Any]]) -> int:
    return sum(row["a"] is not None and row["b"] is not None for row in rows)


def _show(screen: Any, rows: list[dict[str, Any]]) -> None:
    table = grid("prompt", "A", "B", "bank")
    for row in rows[:SHOWN]:
        table.add_row(*(cell(row[name] or "-") for name in ("prompt", "a", "b", "bank")))
    if rows:
        screen.print(table)
    if len(rows) > SHOWN:
        screen.print(f"and {len(rows) - SHOWN} more; --json lists all")
    screen.print(f"{len(rows)} edits differ")
