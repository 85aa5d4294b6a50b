"""`memoir export`: the edits of a memory as JSON lines, to be taught again elsewhere."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from memoir_fast.cli.options import require_writable
from memoir_fast.cli.plain import escaped


def export(
    memory: Annotated[str, typer.Argument(metavar="DIR", help="A saved memory: a folder, or a hub id.")],
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FILE", help="Write here. Default: standard output.")
    ] = None,
) -> None:
    """Write a memory's edits as JSON lines that `memoir edit` takes, those of its journal included. Needs no model."""
    from memoir_fast.io.durable import current_edits
    from memoir_fast.io.edit_texts import row_of

    require_writable(to, "--to")
    _, edits, _ = current_edits(memory)
    text = "".join(
        json.dumps(row_of(edit_id, edit), ensure_ascii=False) + "\n" for edit_id, edit in sorted(edits.items())
    )
    if to is None:
        sys.stdout.write(escaped(text))
    else:
        to.write_text(text, encoding="utf-8")
