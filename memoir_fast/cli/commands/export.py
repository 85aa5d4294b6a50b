"""`memoir export`: the edits of a memory as JSON lines, to be taught again elsewhere."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

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

    require_writable(to, "--to")
    _, edits, _ = current_edits(memory)
    lines = []
    for edit_id, edit in sorted(edits.items()):
        further: dict[str, Any] = {
            "taught_paraphrases": list(edit.paraphrases),
            "keep": list(edit.keep),
            "bank": edit.bank,
        }
        texts = {name: given for name, given in further.items() if given}
        lines.append(
            json.dumps({"id": edit_id, "prompt": edit.prompt, "target": edit.target, **texts}, ensure_ascii=False)
        )
    text = "".join(line + "\n" for line in lines)
    if to is None:
        sys.stdout.write(escaped(text))
    else:
        to.write_text(text, encoding="utf-8")
