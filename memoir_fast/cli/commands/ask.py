"""`memoir ask`: one prompt, answered with and without the memory."""

from typing import Annotated, Any

import typer

from memoir_fast.cli.options import Device, Dtype, Json, Model, Quiet, console, require_writable, write_json
from memoir_fast.cli.plain import cell, grid


def ask(
    prompt: Annotated[str, typer.Argument(help="What to ask.")],
    model: Model,
    memory: Annotated[str, typer.Option("--memory", metavar="DIR", help="A saved memory: a folder, or a hub id.")],
    bank: Annotated[
        list[str] | None, typer.Option("--bank", metavar="NAME", help="Ask for the edits of this bank too; repeatable.")
    ] = None,
    new_tokens: Annotated[int, typer.Option("--new-tokens", min=1, help="Longest answer, in tokens.")] = 16,
    dtype: Dtype = "auto",
    device: Device = "auto",
    json_file: Json = None,
    quiet: Quiet = False,
) -> None:
    """Answer a prompt with and without the memory, and tell which edit it followed."""
    if not prompt.strip():
        raise typer.BadParameter("the prompt must not be empty")
    from memoir_fast import Memoir
    from memoir_fast.hf.answer import answer
    from memoir_fast.hf.loading import load_model

    require_writable(json_file)
    loaded, tokenizer = load_model(model, dtype, device)
    memoir = Memoir.from_pretrained(loaded, tokenizer, memory)
    with memoir.disabled():
        without = answer(loaded, tokenizer, prompt, new_tokens)
    with memoir.banks(set(bank or ())):
        edited = answer(loaded, tokenizer, prompt, new_tokens)
    route = memoir.last_routes[0]
    followed = memoir.edits.get(route.edit_id)
    values = {
        "prompt": prompt,
        "answer": edited,
        "answer_without": without,
        "edit_id": route.edit_id if followed else None,
        "edit_prompt": followed.prompt if followed else None,
        "edit_target": followed.target if followed else None,
        "edit_bank": followed.bank if followed else None,
        "overlap": route.overlap,
        "tau": memoir.tau,
    }
    write_json(json_file, values)
    empty = sorted(set(bank or ()) - {one.bank for one in memoir.edits.values()})
    _show(console(json_file, quiet), values, empty)


def _show(screen: Any, values: dict[str, Any], empty: list[str]) -> None:
    table = grid("without the memory", "with the memory", title=cell(values["prompt"]))
    table.add_row(cell(values["answer_without"]), cell(values["answer"]))
    screen.print(table)
    overlap = f"overlap {values['overlap']:.3f}, tau {values['tau']:g}"
    if values["edit_id"] is None:
        own = (
            "; not every prompt above it matches, see docs/troubleshooting.md"
            if values["overlap"] >= values["tau"]
            else ""
        )
        screen.print(f"route: no edit matches ({overlap}{own})")
    else:
        text = f"route: edit {values['edit_id']}, {values['edit_prompt']!r} -> {values['edit_target']!r} ({overlap})"
        text += f", of the bank {values['edit_bank']!r}" if values["edit_bank"] else ""
        screen.print(text, markup=False)
    for name in empty:
        screen.print(f"no edit is in the bank {name!r}", markup=False)
