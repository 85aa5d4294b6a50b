"""`memoir eval`: measures a model's edits as the papers do, with what to compare them with."""

import dataclasses
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from memoir_fast.cli.options import EDITS_FILE, Device, Dtype, Json, Model, Quiet, console, require_writable, write_json
from memoir_fast.cli.plain import grid, plain


def eval(
    model: Model,
    data: Annotated[Path, typer.Option("--data", "-d", metavar="FILE", help=EDITS_FILE)],
    edits: Annotated[int, typer.Option("--edits", "-n", min=1, help="Take the file's first rows, so many.")] = 100,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a self-contained report.")] = None,
    plots: Annotated[Path | None, typer.Option("--plots", metavar="DIR", help="Write plots as PNG, SVG.")] = None,
    run: Annotated[
        Path | None,
        typer.Option("--run", metavar="DIR", help="Keep the run here, and go on from what is there."),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what --run holds.")] = False,
    format: Annotated[str | None, typer.Option("--format", help="Format of --data, where it is mistaken.")] = None,
    skip_unusable: Annotated[
        bool, typer.Option("--skip-unusable", help="Leave out rows without a field, or with an empty one; list them.")
    ] = False,
    subjects: Annotated[
        bool, typer.Option("--subjects/--no-subjects", help="Tell edits the subject of their prompts, where rows do.")
    ] = True,
    when: Annotated[str, typer.Option("--when", help="end: after all edits; each: each after its own edit.")] = "end",
    baselines: Annotated[
        str,
        typer.Option(
            "--baselines", help="unedited, ft, paper-routing, no-permutation, random-mask, always-on, dense, k=N."
        ),
    ] = "unedited",
    baseline_edits: Annotated[
        int | None, typer.Option("--baseline-edits", min=1, help="Teach baselines only the first so many edits.")
    ] = None,
    irrelevant: Annotated[
        Path | None, typer.Option("--irrelevant", metavar="FILE", help="More prompts that must match no edit.")
    ] = None,
    text: Annotated[
        Path | None, typer.Option("--text", metavar="FILE", help="A text: its perplexity before and after.")
    ] = None,
    recipe: Annotated[str | None, typer.Option("--recipe", help="How edits are learned.")] = None,
    tau: Annotated[str | None, typer.Option("--tau", help="Threshold in (0, 1], or auto.")] = None,
    k: Annotated[int | None, typer.Option("--k", min=1, help="Active columns per edit.")] = None,
    layer: Annotated[str | None, typer.Option("--layer", help="Name of the edited layer.")] = None,
    further: Annotated[
        int, typer.Option("--further", min=0, help="Add the memory to as many further layers, in the next blocks.")
    ] = 0,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the permutation.")] = 0,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Texts per forward pass when measuring.")] = 8,
    checkpoint_every: Annotated[
        int, typer.Option("--checkpoint-every", min=1, help="Edits between checkpoints of --run.")
    ] = 25,
    free: Annotated[bool, typer.Option("--free/--no-free", help="Let the model answer freely too.")] = True,
    texts: Annotated[bool, typer.Option("--texts/--no-texts", help="Show prompts and targets in the results.")] = True,
    dtype: Dtype = "auto",
    device: Device = "auto",
    json_file: Json = None,
    quiet: Quiet = False,
) -> None:
    """Teach a model the edits of a data set; measure reliability, generalization, locality and what goes with them."""
    given = dict(locals())
    from memoir_fast.atomic import replace
    from memoir_fast.evaluation import baselines as compared
    from memoir_fast.evaluation.run import Settings, evaluate, load_data, milestones
    from memoir_fast.evaluation.team import SharedRunFolder, Team
    from memoir_fast.hf.loading import load_model

    chosen = {one.name: given[one.name] for one in dataclasses.fields(Settings)}
    settings = Settings(**chosen | {"tau": _threshold(tau), "baselines": tuple(compared.names(baselines))})
    settings.config  # noqa: B018  (checked before the model is loaded)
    for file, option in ((json_file, "--json"), (html, "--html")):
        require_writable(file, option)
    if html is not None or plots is not None:
        from memoir_fast.evaluation import plots as drawing
        from memoir_fast.evaluation import report

        drawing.require()
    read = load_data(settings)
    team = Team()
    screen = console(json_file, quiet or not team.leads)
    with ExitStack() as stack:
        path = run or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="memoir_fast-eval-")))
        folder = SharedRunFolder(team, path, settings.params(), fresh)
        progress = team.leads and not quiet
        result = evaluate(settings, read, lambda: load_model(model, dtype, device), folder, progress, team)
        result["milestones"] = milestones(folder)
    if not team.leads:
        return
    if not texts:
        result["per_edit"] = [
            {name: value for name, value in one.items() if name not in ("prompt", "target")}
            for one in result["per_edit"]
        ]
    if html is not None or plots is not None:
        figures = report.draw(result, plots)
        if html is not None:
            replace(html, report.page(result, figures, _command()).encode())
    write_json(json_file, result)
    _show(screen, result)


def _command() -> list[str]:
    name = Path(sys.argv[0]).name
    return ["memoir" if name == "__main__.py" else name, *sys.argv[1:]]


def _threshold(text: str | None) -> float | str | None:
    if text is None or text == "auto":
        return text
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"tau must lie in (0, 1] or be 'auto', got {text!r}") from None


def _show(screen: Any, result: dict[str, Any]) -> None:
    from memoir_fast.evaluation.tables import COLUMNS, rows, used

    shown = list(rows(result))
    table = grid("", *(name for name, _ in shown), title=f"{result['edits']} edits")
    for index in used(shown):  # a line for each figure: as columns they would be too narrow to be read
        table.add_row(COLUMNS[index], *(cells[index] for _, cells in shown))
    screen.print(table)
    lines = (
        f"tau {result['tau']:.3f}; {result['false_matches']} of {result['irrelevant']} irrelevant prompts were matched",
        f"{result['learned']} of {result['edits']} learned below the loss threshold, "
        f"{result['seconds_per_edit']:.2f} s each",
        f"{len(result['conflicts'])} groups of rows contradict each other",
    )
    for line in (*lines, *(f"left out: {why}" for why in result["unusable"])):
        screen.print(plain(line), markup=False)
