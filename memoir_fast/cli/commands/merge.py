"""`memoir merge`: takes the edits of one saved memory into another."""

import dataclasses
from typing import Annotated, Any

import typer

from memoir_fast.cli.options import Device, Dtype, Json, Model, Quiet, console, write_json
from memoir_fast.cli.plain import cell, grid
from memoir_fast.cli.saved import Memory, Out, changed

SHOWN = 20  # rows of a table


def merge(
    model: Model,
    memory: Memory,
    other: Annotated[str, typer.Option("--with", metavar="DIR", help="The saved memory whose edits are taken over.")],
    prefer: Annotated[str, typer.Option("--prefer", help="Whose edit wins a conflict: other, or this.")] = "other",
    out: Out = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    json_file: Json = None,
    quiet: Quiet = False,
) -> None:
    """Take the edits of another memory of the same model over, without teaching them again; list conflicts; save."""
    with changed(model, memory, out, dtype, device, json_file) as (memoir, target):
        found = memoir.merge(other, prefer)
        if out is not None:
            memoir.save_pretrained(out)
        status = memoir.status()
    conflicts = [
        {"bank": here.bank, "prompt": here.prompt, "this": here.target, "other": there.target}
        for here, there in found.conflicts
    ]
    values = {
        **dataclasses.asdict(found),
        "conflicts": conflicts,
        "memory": str(target),
        "edits": status.edits,
        "pages": status.pages,
        "preferred": prefer,
    }
    write_json(json_file, values)
    _show(console(json_file, quiet), values)


def _show(screen: Any, values: dict[str, Any]) -> None:
    conflicts = values["conflicts"]
    if conflicts:
        table = grid("prompt", "this", "other", "bank", title=f"two targets of one prompt: {values['preferred']} won")
        for one in conflicts[:SHOWN]:
            table.add_row(*(cell(one[name]) for name in ("prompt", "this", "other", "bank")))
        screen.print(table)
        if len(conflicts) > SHOWN:
            screen.print(f"and {len(conflicts) - SHOWN} more; --json lists all")
    screen.print(
        f"{len(values['added'])} edits taken over, {len(values['same'])} were here, {len(conflicts)} conflicts; "
        f"{values['edits']} edits on {values['pages']} pages, saved in {values['memory']}",
        markup=False,
    )
