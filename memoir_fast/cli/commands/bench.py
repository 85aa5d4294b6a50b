"""`memoir bench`: the benchmarks of a checkout, by its own driver."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from memoir_fast.errors import MemoirError

_DRIVER = Path(__file__).resolve().parents[3] / "bench" / "run.py"


def bench(
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="NAME", help="Only this; may be repeated.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="One small case of each, to see that they work.")] = False,
    gpu: Annotated[bool, typer.Option("--gpu", help="Measure the CUDA device instead of the CPU.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Where the figures go.")] = None,
) -> None:
    """Measure every op beside its peers on this machine. Needs a checkout: the benchmarks are not in the package."""
    if not _DRIVER.is_file():
        raise MemoirError(
            "the benchmarks are not part of the installed package; in a clone of the repository run: make bench"
        )
    options = [part for name in only or () for part in ("--only", name)]
    options += ["--quick"] * quick + ["--gpu"] * gpu + (["--json", str(json_file)] if json_file else [])
    code = subprocess.run([sys.executable, str(_DRIVER), *options], check=False).returncode
    if code:
        raise typer.Exit(code)
