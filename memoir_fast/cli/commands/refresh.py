"""`memoir refresh`: teaches the faded edits of a saved memory again."""

from typing import Annotated

import typer

from memoir_fast.cli.options import Device, Dtype, Json, Model, Quiet
from memoir_fast.cli.saved import Memory, Out, Recipe, changed, tell_taught


def refresh(
    model: Model,
    memory: Memory,
    turns: Annotated[int, typer.Option("--turns", min=1, help="How often to look for faded edits.")] = 3,
    recipe: Recipe = None,
    out: Out = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    json_file: Json = None,
    quiet: Quiet = False,
) -> None:
    """Teach the edits again that others have overwritten, and save the memory.

    Each is in the folder as soon as it is learned: in that of --memory, or in that of --out where no memory is there
    yet. One that is there is replaced at the end.

    Exit code 3: some edit was not learned.
    """
    with changed(model, memory, out, dtype, device, json_file, step_by_step=True) as (memoir, target):
        results = memoir.refresh(turns=turns, recipe=recipe, progress=not quiet)
        if out is not None:
            memoir.save_pretrained(out)
    tell_taught(memoir, results, target, json_file, quiet)
