"""Opening a saved memory to change it, and saving what came of it: what `refresh`, `compact` and `merge` share."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from memoir_fast.cli.options import console, require_writable, write_json

Memory = Annotated[str, typer.Option("--memory", metavar="DIR", help="A saved memory: a folder, or a hub id.")]
Out = Annotated[
    Path | None, typer.Option("--out", "-o", metavar="DIR", help="Save here. Default: in place of the memory.")
]
Recipe = Annotated[str | None, typer.Option("--recipe", help="How edits are learned. Default: the memory's own.")]
SOME_NOT_LEARNED = 3


def open_saved(
    model: str, memory: str, out: Path | None, dtype: str, device: str, json_file: Path | None
) -> tuple[Any, Path]:
    """The model with its memory, and where it will be saved; ValueError, OSError where it could not be."""
    from memoir_fast import Memoir
    from memoir_fast.hf.loading import load_model

    require_writable(json_file)
    target = out or Path(memory)
    if out is None and not target.is_dir():
        raise ValueError(f"{memory} is no local folder; name one with --out")
    loaded, tokenizer = load_model(model, dtype, device)
    return Memoir.from_pretrained(loaded, tokenizer, memory), target


def save_taught(memoir: Any, results: list[Any], target: Path, json_file: Path | None, quiet: bool) -> None:
    """Saves a memory some of whose edits were taught again, and says how it went; exit code 3: some was not learned."""
    memoir.save_pretrained(target)
    learned, status = sum(result.learned for result in results), memoir.status()
    values = {
        "memory": str(target),
        "edits": status.edits,
        "pages": status.pages,
        "taught_again": len(results),
        "learned": learned,
        "results": [dataclasses.asdict(result) for result in results],
    }
    write_json(json_file, values)
    console(json_file, quiet).print(
        f"{len(results)} of {status.edits} edits taught again, {learned} learned; {status.pages} pages; "
        f"saved in {target}",
        markup=False,
    )
    if learned < len(results):
        raise typer.Exit(SOME_NOT_LEARNED)
