"""`memoir inspect`: what a saved memory holds. Needs no model."""

from typing import Annotated, Any

import typer

from memoir_fast.cli.options import Json, Quiet, console, require_writable, write_json
from memoir_fast.cli.plain import cell, moment

_FURTHER = ("bank", "author", "source")  # shown where some edit has one
_FIELDS = ("bank", "prompt", "target", "author", "source", "taught_at")


def inspect(
    memory: Annotated[str, typer.Argument(metavar="DIR", help="A saved memory: a folder, or a hub id.")],
    edits: Annotated[int, typer.Option("--edits", min=0, help="How many edits to show.")] = 20,
    json_file: Json = None,
    quiet: Quiet = False,
) -> None:
    """Verify a saved memory and show its settings, base model and edits. Needs no model."""
    from memoir_fast.io import checkpoint

    require_writable(json_file)
    saved = checkpoint.read(memory)
    masks, values = saved.tensors["masks"], saved.tensors["memory_values"]
    report = {
        "memory": str(saved.folder),
        "package_version": saved.package_version,
        "edits": len(saved.edits),
        "deleted": len(masks) - len(saved.edits),
        "width": len(saved.tensors["mu"]),
        "outputs": values.shape[1],
        "columns_used": len(values),
        "dtype": str(values.dtype).removeprefix("torch."),
        "tau": saved.tau,
        "config": saved.config.to_dict(),
        "base_model": saved.fingerprint,
        "prefixes": saved.prefixes,
        "files": saved.sizes,
        "texts": [
            {"id": edit_id, **{name: getattr(edit, name) for name in _FIELDS}} for edit_id, edit in saved.edits.items()
        ],
    }
    write_json(json_file, report)
    _show(console(json_file, quiet), report, edits)


def _show(screen: Any, report: dict[str, Any], shown: int) -> None:
    from rich.table import Table

    base, config = report["base_model"], report["config"]
    table = Table("", "", show_header=False, title=cell(report["memory"]))
    rows = {
        "edits": f"{report['edits']} live, {report['deleted']} deleted",
        "columns": f"{config['k']} of {report['width']} per edit, {report['columns_used']} in use",
        "memory": f"{report['width']} x {report['outputs']}, {report['dtype']}",
        "tau": f"{report['tau']:g}",
        "recipe": str(config["recipe"]),
        "base model": f"{base['model_type']}, {base['num_hidden_layers']} layers, hidden {base['hidden_size']}",
        "layer": ", ".join(str(one["layer"]) for one in (base, *base.get("further", ()))),
        "weight": f"sha256 {str(base['weight_sha256'])[:12]}... ({base['weight_hashed_as']})",
        "files": ", ".join(f"{name} ({size:,} bytes)" for name, size in report["files"].items()),
        "written by": f"memoir_fast {report['package_version']}",
    }
    for name, value in rows.items():
        table.add_row(name, cell(value))
    screen.print(table)
    if not shown or not report["texts"]:
        return
    names = ["prompt", "target", *(name for name in _FURTHER if any(one[name] for one in report["texts"]))]
    table = Table("id", *names, "taught at")
    for one in report["texts"][:shown]:
        table.add_row(str(one["id"]), *(cell(one[name]) for name in names), moment(one["taught_at"]))
    screen.print(table)
    if len(report["texts"]) > shown:
        screen.print(f"and {len(report['texts']) - shown} more")
