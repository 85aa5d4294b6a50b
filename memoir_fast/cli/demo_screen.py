"""What `memoir demo` shows: its tables, from what was measured."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.text import Text

from memoir_fast.cli.plain import cell, grid
from memoir_fast.evaluation.answers import says
from memoir_fast.hf.routing import Route


class Shown(NamedTuple):
    """One prompt, answered before and after the edits."""

    kind: str
    prompt: str
    target: str
    """What it was taught; "" where nothing was, and the answer should be the old one."""
    before: str
    after: str
    route: Route

    @property
    def right(self) -> bool:
        """The answer begins with the target, or is the old one."""
        return says(self.after, self.target) if self.target else self.after == self.before


class Freely(NamedTuple):
    """One taught prompt, answered without help."""

    prompt: str
    target: str
    answer: str
    said: bool
    """The answer begins with the target, in the sense of `answers.says`."""
    changed: bool
    """The route at the prompt's end, or the one after the last token, is not this edit's."""


def answers(screen: Console, rows: Sequence[Shown]) -> None:
    """Some prompts of each kind, and what the model says."""
    table = grid("kind", "prompt", "taught", "answer before", "answer after", "as it should", "route (overlap)")
    for row in rows:
        went = f"edit {row.route.edit_id}" if row.route.edit_id >= 0 else "none"
        texts = map(_line, (row.prompt, row.target or "-", row.before, row.after))
        table.add_row(row.kind, *texts, "yes" if row.right else "NO", f"{went} ({row.route.overlap:.2f})")
    screen.print(table)


def not_said(screen: Console, freely: Sequence[Freely]) -> None:
    """The taught prompts after which something else was said, or another edit followed; nothing where there is none."""
    wrong = [one for one in freely if not one.said or one.changed]
    if wrong:
        table = grid("prompt", "taught", "said instead", "route", title="not said freely")
        for one in wrong:
            route = "left its edit" if one.changed else "its edit"
            table.add_row(*map(_line, (one.prompt, one.target, one.answer, route)))
        screen.print(table)


def deleted(screen: Console, prompt: str, edited: str, again: str, old: str) -> None:
    """One prompt's answers around the deletion of its edit."""
    table = grid("edited", "edit deleted", "before any edit", title=cell(prompt))
    table.add_row(*map(_line, (edited, again, old)))
    screen.print(table)


def figures(screen: Console, values: dict[str, Any]) -> None:
    """The figures of `demo.run`, each with what it means."""
    table = grid("figure", "value")
    missed = f"{values['false_matches']} of {values['unrelated_prompts']} unrelated prompts matched an edit"
    rows = {
        "model": f"{values['model']}, {values['dtype']} on {values['device']}, {values['threads']} threads",
        "edits": f"{values['edits']}, {values['learned']} learned below the loss threshold, recipe {values['recipe']}",
        "said freely": f"{values['exact_match']:.3f} of the facts, when the model is asked without help",
        "reliability": f"{values['reliability']:.3f} of the targets' tokens, each after the right ones before it",
        "generalization": f"{values['generalization']:.3f} of them after paraphrases "
        f"({values['paraphrases_routed']:.1%} routed to their edit)",
        "in a chat": _share(values["in_a_chat"], "said in the model's chat template", "the model has no chat template"),
        "in freer words": _share(values["freer"], "questions in words of their own answered with what was taught"),
        "kept": _share(values["kept"], "questions that an edit keeps answered as before"),
        "neighbours": _share(values["neighbours"], "other questions about another subject answered as before"),
        "locality": f"{values['locality']:.3f} of the tokens after unrelated prompts as before ({missed})",
        "threshold": f"{values['tau']:.3f}, for {values['false_match_rate']:g} of irrelevant prompts to match",
        "seconds per edit": f"{values['seconds_per_edit']:.2f} ({values['steps_per_edit']:.1f} steps)",
        "bytes per edit": f"{values['bytes_per_edit']:,}",
        "reloaded in a new process": "the same bits" if values["reload_equal"] else "DIFFERENT",
        "edit deleted": "the old answer, the same bits" if values["delete_restores"] else "NOT the old answer",
    }
    for name, value in rows.items():
        table.add_row(name, Text(value))
    screen.print(table)


def _share(right: list[bool], what: str, none: str = "not asked") -> str:
    return f"{sum(right)} of {len(right)} {what}" if right else none


def _line(text: str) -> Text:
    return cell(" ".join(text.split()))
