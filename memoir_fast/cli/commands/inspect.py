"""`memoir inspect`: what a saved memory holds. Needs no model."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memoir_fast.cli.options import Json, Quiet, console, require_writable, write_json
from memoir_fast.cli.plain import cell, grid, moment

if TYPE_CHECKING:
    from torch import Tensor

_FURTHER = ("subject", "bank", "author", "source")  # shown where some edit has one
_FIELDS = ("bank", "prompt", "target", "subject", "author", "source", "taught_at")


def inspect(
    memory: Annotated[str, typer.Argument(metavar="DIR", help="A saved memory: a folder, or a hub id.")],
    edits: Annotated[int, typer.Option("--edits", min=0, help="How many edits to show.")] = 20,
    json_file: Json = None,
    quiet: Quiet = False,
) -> None:
    """Verify a saved memory and show its settings, base model and edits, its journal included. Needs no model."""
    from memoir_fast.io.durable import read_pair

    require_writable(json_file)
    saved, journal = read_pair(memory)
    now, values, width = _now(saved, journal), saved.tensors["memory_values"], len(saved.tensors["mu"])
    report = {
        "memory": str(saved.folder),
        "package_version": saved.package_version,
        "edits": len(now.edits),
        "deleted": now.places - len(now.edits),
        "records_since": 0 if journal is None else journal.frames.records,
        "width": width,
        "outputs": values.shape[1],
        "columns_used": int(now.rows.sum()),
        "dtype": str(values.dtype).removeprefix("torch."),
        "tau": now.tau,
        "config": saved.config.to_dict(),
        "base_model": saved.fingerprint,
        "prefixes": saved.prefixes,
        "files": saved.sizes,
        "texts": [
            {"id": edit_id, **{name: getattr(edit, name) for name in _FIELDS}}
            for edit_id, edit in sorted(now.edits.items())
        ],
    }
    write_json(json_file, report)
    _show(console(json_file, quiet), report, edits)


@dataclass
class _Now:
    """What a snapshot and its journal hold together."""

    edits: dict[int, Any]
    places: int
    """Of live and of deleted edits."""
    tau: float
    rows: "Tensor"
    """bool, which of the residual memory's are not zero; row c of page p is p * D + c."""


def _now(saved: Any, journal: Any) -> _Now:
    import torch

    from memoir_fast.errors import CheckpointError
    from memoir_fast.io import changes

    tensors, width = saved.tensors, len(saved.tensors["mu"])
    rows = tensors["memory_rows"].long()
    used = torch.zeros(width + int(rows.max()) if len(rows) else width, dtype=torch.bool)
    used[rows] = True
    now = _Now(dict(saved.edits), len(tensors["masks"]), saved.tau, used)
    with nullcontext(()) if journal is None else journal as records:
        for record in records:
            changes.apply_texts(now.edits, record)
            if record.kind == "calibration":
                now.tau = record.values["tau"]
            elif "page" in record.values:
                now.places = max(now.places, record.values["id"] + 1)
                if not 0 <= record.values["page"] < now.places:
                    raise CheckpointError(f"record {record.sequence} of the journal is of a page that there is not")
                first = record.values["page"] * width
                if len(now.rows) < first + width:
                    more = torch.zeros(max(first + width, len(now.rows)), dtype=torch.bool)
                    now.rows = torch.cat([now.rows, more])
                own = now.rows[first : first + width]
                if record.values["emptied"]:
                    own.zero_()
                own[record.tensors["rows"].long()] = record.tensors["values"].ne(0).any(1)
    return now


def _show(screen: Any, report: dict[str, Any], shown: int) -> None:
    base, config = report["base_model"], report["config"]
    since = f"{report['records_since']} records since the snapshot"
    table = grid("", "", show_header=False, title=cell(report["memory"]))
    rows = {
        "edits": f"{report['edits']} live, {report['deleted']} deleted, {since}",
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
    table = grid("id", *names, "taught at")
    for one in report["texts"][:shown]:
        table.add_row(str(one["id"]), *(cell(one[name]) for name in names), moment(one["taught_at"]))
    screen.print(table)
    if len(report["texts"]) > shown:
        screen.print(f"and {len(report['texts']) - shown} more")
