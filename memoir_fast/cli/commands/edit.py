"""`memoir edit`: teaches the edits of a file and saves the memory."""

import dataclasses
import os
import shutil
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from memoir_fast.cli.options import EDITS_FILE, Device, Dtype, Json, Model, Quiet, console, require_writable, write_json
from memoir_fast.cli.plain import cell, grid
from memoir_fast.cli.saved import SOME_NOT_LEARNED, begun_at, terminable

SHOWN = 20  # rows of a table
BEYOND = 8  # tokens after the target in which it shows that the model does not end, or runs on into another word


def edit(
    model: Model,
    edits: Annotated[Path, typer.Option("--edits", "-e", metavar="FILE", help=EDITS_FILE)],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Folder of the memory. Default: that of --memory."),
    ] = None,
    memory: Annotated[str | None, typer.Option("--memory", metavar="DIR", help="Saved memory to go on from.")] = None,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", help="fast-stop, fast or paper. Default: fast-stop, or the memory's own."),
    ] = None,
    bank: Annotated[
        str | None, typer.Option("--bank", metavar="NAME", help="The bank of edits that name none. Default: none.")
    ] = None,
    author: Annotated[str, typer.Option("--author", help="Who asks for the edits that name nobody.")] = "",
    source: Annotated[str, typer.Option("--source", help="Where the edits come from that name no source.")] = "",
    tau: Annotated[float | None, typer.Option("--tau", help="Threshold on the overlap ratio, in (0, 1].")] = None,
    format: Annotated[str | None, typer.Option("--format", help="Format of --edits, where it is mistaken.")] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    json_file: Json = None,
    quiet: Quiet = False,
) -> None:
    """Teach a model the edits of a file, save the memory, and show what the model says after each prompt now.

    Each edit is in the folder, durably, as soon as it is learned: in that of --memory, or in that of --out where no
    memory is there yet. One that is there is replaced at the end.

    Exit code 3: some edit was not learned.
    """
    from memoir_fast.core.edit import as_edit
    from memoir_fast.evaluation.answers import free_answers, says
    from memoir_fast.io.json_stream import objects
    from memoir_fast.io.readers import detect, read_cases

    cases = list(read_cases(edits, format))
    asked = (
        dataclasses.replace(one, author=one.author or author, source=one.source or source)
        for one in (case.edit for case in cases)
    )
    wanted = [one if one.bank else as_edit(one, bank) for one in asked]
    target = _require_folder(out, memory)
    require_writable(json_file)
    screen = console(json_file, quiet)
    made = not target.exists()
    memoir, begun = _open(model, memory, recipe, tau, dtype, device, out)
    started = time.perf_counter()
    before = dict(memoir.edits)
    try:
        with terminable():
            results = memoir.edit(wanted, recipe=recipe, progress=not quiet)
    except BaseException:
        if memoir.edits != before:  # what is finished is not lost
            if out is not None:
                memoir.save_pretrained(out)
            screen.print(f"stopped; {len(memoir.edits)} finished edits are saved in {target}", markup=False)
        if made and begun and memoir.edits == before:  # while the folder is locked: then it holds nothing of others
            shutil.rmtree(target, ignore_errors=True)
        memoir.close()
        raise
    seconds = time.perf_counter() - started
    if out is not None:
        memoir.save_pretrained(out)
    memoir.close()
    held = list({result.edit_id: result for result in results}.values())  # without those that a later line replaced
    pairs, banks = [(result.prompt, result.target) for result in held], [result.bank for result in held]
    answers = free_answers(memoir, pairs, beyond=BEYOND, banks=banks, progress=not quiet)
    said = {one.edit_id: (text, says(text, one.target)) for one, text in zip(held, answers, strict=True)}
    learned = sum(result.learned for result in results)
    write_json(
        json_file,
        {
            "model": model,
            "memory": str(target),
            "edits": len(results),
            "learned": learned,
            "held": len(memoir.edits),
            "seconds": seconds,
            "said": sum(yes for _, yes in said.values()),
            "results": [_with_answer(result, said if result in held else {}) for result in results],
        },
    )
    _show(screen, results, learned, seconds, target)
    if len(held) < len(results):
        screen.print(f"{len(results) - len(held)} of them gave way to a later row of the same prompt")
    untaught = sum(bool(case.paraphrases) for case in cases)
    if untaught and (format or detect(next(objects(edits))[1])) == "jsonl":
        screen.print(f"paraphrases of {untaught} rows were not taught: those in 'taught_paraphrases' are", markup=False)
    _show_said(screen, held, said)
    if learned < len(results):
        raise typer.Exit(SOME_NOT_LEARNED)


def _require_folder(out: Path | None, memory: str | None) -> Path:
    """Where the memory will be; an error now, not after hours of learning, where it cannot be there."""
    if out is None:
        if memory is None:
            raise typer.BadParameter("name a folder for the memory with --out, or a memory to go on from with --memory")
        if not Path(memory).is_dir():
            raise ValueError(f"{memory} is no local folder; name one with --out")
        return Path(memory)
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir():
        raise NotADirectoryError(f"the memory cannot be saved to {out}: {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"the memory cannot be saved to {out}: {there} is not writable")
    return out


def _open(
    model: str, memory: str | None, recipe: str | None, tau: float | None, dtype: str, device: str, out: Path | None
) -> tuple[Any, bool]:
    """The model with its memory, whose folder is kept up with it; but `out` is not where it holds another memory.

    And whether `out` was begun with it: of what is there, nothing is another's then.
    """
    from memoir_fast import Memoir, MemoirConfig
    from memoir_fast.hf.loading import load_model
    from memoir_fast.io import durable
    from memoir_fast.io.checkpoint import checksum_of

    given: dict[str, Any] = {} if tau is None else {"tau": tau}
    config = MemoirConfig(recipe=recipe or "fast-stop", **given)  # checked before the model is loaded
    keep = out is None
    if keep and memory is not None:
        checksum_of(memory)  # an empty folder would be begun
    loaded, tokenizer = load_model(model, dtype, device)
    begun = None if out is None or durable.holds(loaded, out) else out
    if memory is None:
        if begun is None:
            return Memoir.attach(loaded, tokenizer, config), False
        memoir = Memoir.open(loaded, tokenizer, begun, config)
        return memoir, not memoir.edits
    memoir = (Memoir.open if keep else Memoir.from_pretrained)(loaded, tokenizer, memory)
    if tau is not None:
        memoir.layer.tau, memoir.config = tau, memoir.config.replace(tau=tau)
        memoir.calibration = memoir.background = None  # tau was not chosen by them
        if keep:
            memoir.save_pretrained(memory)  # what is set by hand is in no journal
    if begun is not None:
        memoir = begun_at(begun, memoir)
    return memoir, begun is not None


def _show(screen: Any, results: list[Any], learned: int, seconds: float, out: Path) -> None:
    failed = [result for result in results if not result.learned]
    if failed:
        table = grid("id", "prompt", "target", "loss", "steps", title="not learned below the loss threshold")
        for result in failed[:SHOWN]:
            texts = cell(result.prompt), cell(result.target)
            table.add_row(str(result.edit_id), *texts, f"{result.loss:.3f}", str(result.steps))
        screen.print(table)
        if len(failed) > SHOWN:
            screen.print(f"and {len(failed) - SHOWN} more; --json lists all")
    screen.print(
        f"{learned} of {len(results)} edits learned, {seconds / len(results):.2f} s each; saved in {out}", markup=False
    )


def _with_answer(result: Any, said: dict[int, tuple[str, bool]]) -> dict[str, Any]:
    """A result for JSON, with what the model says; nothing where a later edit of the same prompt took its place."""
    text, yes = said.get(result.edit_id, (None, None))
    return dataclasses.asdict(result) | {"says": text, "says_target": yes}


def _show_said(screen: Any, held: list[Any], said: dict[int, tuple[str, bool]]) -> None:
    """Few edits with what the model says; of many those that it does not say."""
    few = len(held) <= SHOWN
    shown = [result for result in held if few or not said[result.edit_id][1]]
    if shown:
        title = "what the model says now" if few else "edits that the model does not say"
        table = grid("id", "prompt", "target", "it says", "the target?", title=title)
        for result in shown[:SHOWN]:
            text, yes = said[result.edit_id]
            texts = (cell(" ".join(one.split())) for one in (result.prompt, result.target, text))
            table.add_row(str(result.edit_id), *texts, "yes" if yes else "no")
        screen.print(table)
        if len(shown) > SHOWN:
            screen.print(f"and {len(shown) - SHOWN} more; --json lists all")
    count = sum(yes for _, yes in said.values())
    screen.print(f"asked freely, the model says {count} of {len(held)} targets", markup=False)
