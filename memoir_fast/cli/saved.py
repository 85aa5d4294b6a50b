"""Opening a saved memory to change it, and telling what came of it: what commands that change one share."""

import dataclasses
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from memoir_fast.cli.options import console, require_writable, write_json

Memory = Annotated[str, typer.Option("--memory", metavar="DIR", help="A saved memory: a folder, or a hub id.")]
Out = Annotated[
    Path | None, typer.Option("--out", "-o", metavar="DIR", help="Save here. Default: in the memory's folder.")
]
Recipe = Annotated[str | None, typer.Option("--recipe", help="How edits are learned. Default: the memory's own.")]
SOME_NOT_LEARNED = 3
"""Exit code."""


@contextmanager
def terminable() -> Iterator[None]:
    """Within the block, SIGTERM interrupts as Ctrl-C does, so that what is finished is saved, and told."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def changed(
    model: str,
    memory: str,
    out: Path | None,
    dtype: str,
    device: str,
    json_file: Path | None,
    *,
    step_by_step: bool = False,
) -> Iterator[tuple[Any, Path]]:
    """Within the block, the model with its memory, and where that will be; ValueError, OSError where it could not be.

    Without `out`, the memory's folder is open: it is kept up with each change, and nobody else writes to it meanwhile,
    whose changes would be lost. What is done `step_by_step` is kept so in `out` too, where no memory is there yet; what
    is done at once, or quick, is left to the caller to save there.
    """
    from memoir_fast import Memoir
    from memoir_fast.hf.loading import load_model
    from memoir_fast.io import durable
    from memoir_fast.io.checkpoint import checksum_of
    from memoir_fast.io.renewal import state

    require_writable(json_file)
    target = out or Path(memory)
    if out is None and not target.is_dir():
        raise ValueError(f"{memory} is no local folder; name one with --out")
    if out is None:
        checksum_of(memory)  # an empty folder would be begun
    loaded, tokenizer = load_model(model, dtype, device)
    made = out is not None and not out.exists()
    begun = step_by_step and out is not None and not durable.holds(loaded, out)
    memoir = (Memoir.open if out is None else Memoir.from_pretrained)(loaded, tokenizer, memory)
    if begun:
        memoir = begun_at(target, memoir)
    before = state(memoir)
    with memoir:
        try:
            yield memoir, target
        except BaseException:
            if begun and state(memoir) != before:
                typer.echo(f"memoir: what was done is saved in {target}", err=True)
            elif begun and made:  # while the folder is locked: then it holds nothing of others
                shutil.rmtree(target, ignore_errors=True)
            raise


def begun_at(folder: Path, memoir: Any) -> Any:
    """A memory in a folder that holds none yet, which is kept up with it from now on.

    CheckpointError where one is there meanwhile, or it cannot be written.
    """
    from memoir_fast import Memoir
    from memoir_fast.io import durable

    durable.begin(memoir, folder).close()
    return Memoir.open(memoir.detach(), memoir.tokenizer, folder)


def tell_taught(memoir: Any, results: list[Any], target: Path, json_file: Path | None, quiet: bool) -> None:
    """Says how it went with a saved memory some of whose edits were taught again; exit code 3: some was not learned."""
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
