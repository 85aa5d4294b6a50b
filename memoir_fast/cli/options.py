"""Options that several commands share, and where their output goes."""

import json
import math
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from memoir_fast.cli.plain import escaped

EDITS_FILE = (
    "A JSON list or JSON lines: prompt and target, or ZsRE, CounterFact, WISE, UnKE, KnowEdit, WikiBigEdit, "
    "Natural Questions."
)

Model = Annotated[
    str,
    typer.Option("--model", "-m", help="A hub id, a local folder, or smollm2 (SmolLM2-135M-Instruct, packaged)."),
]
Dtype = Annotated[str, typer.Option("--dtype", help="auto (as the model was saved), float32, bfloat16 or float16.")]
Device = Annotated[str, typer.Option("--device", help="auto (a GPU where there is one), cpu, cuda, cuda:1 ...")]
Json = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON to FILE; - is standard output.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors and what --json - writes.")]


def console(json_file: Path | None, quiet: bool) -> Console:
    """Where tables and words go: standard output, or standard error where JSON takes standard output."""
    return Console(stderr=str(json_file) == "-", quiet=quiet, highlight=False, soft_wrap=False)


def write_json(json_file: Path | None, values: Any) -> None:
    """Writes `values` where `--json` says, or nowhere."""
    if json_file is None:
        return
    to_screen = str(json_file) == "-"
    plain = to_screen and (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"  # it may lack letters
    text = escaped(json.dumps(_standard(values), indent=2, ensure_ascii=plain, allow_nan=False)) + "\n"
    if to_screen:
        sys.stdout.write(text)
    else:
        json_file.write_text(text, encoding="utf-8")


def require_writable(file: Path | None, option: str = "--json") -> None:
    """OSError now, not after the work, where `option` names a file that cannot be written."""
    if file is None or str(file) == "-":
        return
    if file.is_dir():
        raise IsADirectoryError(f"{option} must name a file, {file} is a folder")
    target = file if file.exists() else file.absolute().parent
    if not target.exists():
        raise FileNotFoundError(f"{option} {file}: there is no folder {target}")
    if not os.access(target, os.W_OK):
        raise PermissionError(f"{option} {file}: {target} is not writable")


def _standard(values: Any) -> Any:
    """`values` with null for numbers that JSON has no word for."""
    if isinstance(values, dict):
        return {name: _standard(value) for name, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [_standard(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values
