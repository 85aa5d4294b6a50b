"""`memoir calibrate`: chooses the threshold of a saved memory for a stated rate of false matches."""

from pathlib import Path
from typing import Annotated, Any

import typer

from memoir_fast.cli.options import Device, Dtype, Json, Model, Quiet, console, write_json
from memoir_fast.cli.plain import cell, grid
from memoir_fast.cli.saved import Memory, Out, changed


def calibrate(
    model: Model,
    memory: Memory,
    irrelevant: Annotated[
        Path | None,
        typer.Option("--irrelevant", "-i", metavar="FILE", help="Prompts unlike any edit: a line each, or a data set."),
    ] = None,
    rate: Annotated[float, typer.Option("--rate", help="Share of irrelevant prompts that may match an edit.")] = 1e-3,
    out: Out = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    json_file: Json = None,
    quiet: Quiet = False,
) -> None:
    """Choose a saved memory's threshold for a stated rate of false matches, and save it."""
    from memoir_fast.io.readers import read_prompts

    prompts = read_prompts(irrelevant) if irrelevant else None
    with changed(model, memory, out, dtype, device, json_file) as (memoir, target):
        before = memoir.tau
        found = memoir.calibrate(prompts, rate)
        if out is not None:
            memoir.save_pretrained(out)
    ahead = {str(factor * found.edits): found.expected_tau(factor * found.edits) for factor in (2, 10)}
    values = {
        "model": model,
        "memory": str(target),
        "tau_before": before,
        **found.to_dict(),
        "expected_tau": ahead,
    }
    write_json(json_file, values)
    _show(console(json_file, quiet), values)


def _show(screen: Any, values: dict[str, Any]) -> None:
    table = grid("", "", show_header=False)
    rows = {
        "tau": f"{values['tau']:.4f}, was {values['tau_before']:.4f}",
        "for": f"a share of {values['false_match_rate']:g} of irrelevant prompts, with {values['edits']} edits",
        "found from": f"{values['prompts']} prompts, {'counted' if values['counted'] else 'by the fitted tail'}",
        "best overlaps": f"around {values['location']:.3f}, scale {values['scale']:.4f}",
        "reworded edits that match": f"{values['rewordings_matched']:.0%}",
        **{f"expected with {edits} edits": f"{tau:.4f}" for edits, tau in values["expected_tau"].items()},
        "saved in": values["memory"],
    }
    for name, value in rows.items():
        table.add_row(name, cell(value))
    screen.print(table)
