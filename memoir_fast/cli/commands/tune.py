"""`memoir tune`: the fastest launch configurations of the Triton kernels on this GPU, for this user."""

from typing import Annotated

import typer

from memoir_fast.cli.options import Json, Quiet, console, require_writable, write_json
from memoir_fast.cli.plain import grid


def tune(
    ops: Annotated[list[str] | None, typer.Argument(metavar="[OP]...", help="Kernels to tune; default: all.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Try fewer configurations.")] = False,
    json_file: Json = None,
    quiet: Quiet = False,
) -> None:
    """Time launch configurations on this GPU and keep the best in your table. Needs a CUDA device."""
    from memoir_fast.kernels import _tuning as tuning

    require_writable(json_file)
    rows = tuning.tune(ops or None, quick)
    write_json(json_file, rows)
    table = grid("kernel", "configuration", "us", "shipped us", "tried")
    for row in rows:
        settings = ", ".join(f"{name}={value}" for name, value in row["configuration"].items())
        times = (f"{row[name]:.2f}" for name in ("microseconds", "shipped_microseconds"))
        table.add_row(row["kernel"], settings, *times, str(row["tried"]))
    console(json_file, quiet).print(table)
