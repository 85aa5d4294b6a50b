"""`memoir demo`: see a model learn."""

from typing import Annotated

import typer

from memoir_fast.cli.options import Device, Dtype, Json, Model, Quiet, console, require_writable, write_json


def demo(
    model: Model = "smollm2",
    edits: Annotated[int, typer.Option("--edits", "-n", min=1, help="How many facts to teach, 96 at most.")] = 32,
    dtype: Dtype = "auto",
    device: Device = "auto",
    json_file: Json = None,
    quiet: Quiet = False,
) -> None:
    """Teach a model facts; show what it says, what it keeps, that a new process knows them too, and that one can be
    taken back. Exit code 1: something of this did not hold, as the last line says.
    """
    from memoir_fast.cli.demo import run, verdict

    require_writable(json_file)
    figures = run(model, edits, dtype, device, console(json_file, quiet), progress=not quiet)
    write_json(json_file, figures)
    if not verdict(figures)[0]:
        raise typer.Exit(1)
