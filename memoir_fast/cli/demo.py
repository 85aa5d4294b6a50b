"""The demonstration: a model learns facts, keeps the rest, survives a new process, and forgets one on request."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from rich.console import Console

from memoir_fast.cli import demo_screen
from memoir_fast.cli.demo_screen import Freely, Shown
from memoir_fast.config import MemoirConfig
from memoir_fast.core.edit import Edit
from memoir_fast.core.scoring import agreement, teacher_forced
from memoir_fast.errors import MemoirError
from memoir_fast.evaluation.answers import says
from memoir_fast.hf.answer import answer, generated
from memoir_fast.hf.chat import as_chat
from memoir_fast.hf.loading import load_model
from memoir_fast.hf.presets import device_of
from memoir_fast.hf.tokens import prompt_ids
from memoir_fast.io.facts import Fact, facts, unrelated
from memoir_fast.memoir import EditResult, Memoir

_NEW_TOKENS = 10
_FALSE_MATCH_RATE = 5e-3  # of irrelevant prompts; the library's default is 1e-3, at which fewer paraphrases are found
_SHOWN_FACTS, _SHOWN_PARAPHRASES, _SHOWN_UNRELATED = 4, 2, 2
_IN_A_CHAT, _FREER, _KEPT, _NEIGHBOUR = "in a chat", "freer words", "kept", "neighbour"
_SAID = 0.9  # share of the edits that the model must say freely for the demo to have worked
_COMPARED = 8  # taught prompts whose logits are compared across processes, and as many of each other kind
# By this process's own path of modules: of itself `python -c` would take the sources of a clone that it is started in.
_RELOAD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from memoir_fast.cli.demo import write_logits; write_logits(*sys.argv[2:])"
)


def run(model_name: str, edits: int, dtype: str, device: str, screen: Console, progress: bool) -> dict[str, Any]:
    """Runs it all, shows it, and returns the figures, ready for JSON.

    `exact_match` is the share of the taught prompts after which the model, answering greedily and without help, says
    what it was taught, in the sense of `answers.says`; `said` has the answers. `in_a_chat`, `freer`, `kept` and
    `neighbours` tell of each such row of the table whether it is answered as it should be; a neighbour that is kept was
    named in its edit's `keep`. The rest is teacher-forced.

    Args:
        model_name, dtype, device: see `generation.load_model`.
        edits (int): how many of the package's facts are taught.
        screen (rich.console.Console): where tables go.
        progress (bool): show a progress bar.

    Raises:
        ValueError: the package has fewer facts.
    """
    known = facts()
    if not 1 <= edits <= len(known):
        raise ValueError(f"edits must lie in 1 .. {len(known)}, the facts that come with the package, got {edits}")
    taught, asides = known[:edits], unrelated()
    model, tokenizer = load_model(model_name, dtype, device)
    rows = _rows(tokenizer, taught, asides)
    old_logits = _logits(model, tokenizer, [fact.prompt for fact in taught])
    old_answers = [answer(model, tokenizer, row.text, _NEW_TOKENS) for row in rows]

    memoir = Memoir.attach(model, tokenizer, MemoirConfig(recipe="fast-stop"))
    started = time.perf_counter()
    results = memoir.edit([_edit_of(fact) for fact in taught], progress=progress)
    seconds = time.perf_counter() - started
    memoir.calibrate(false_match_rate=_FALSE_MATCH_RATE)

    shown = _shown(memoir, rows, old_answers)
    demo_screen.answers(screen, shown)
    freely = _freely(memoir, taught, results)
    demo_screen.not_said(screen, freely)
    scores = _scores(memoir, taught, asides)
    reload_equal = _reloads_equal(memoir, model_name, dtype, device, _compared(taught, asides))
    restored = _delete_and_compare(screen, memoir, results[0], old_logits[0], old_answers[0])
    recipe = memoir.config.recipe
    figures = {
        "model": model_name,
        "edits": edits,
        "reliability": scores["reliability"],
        "generalization": scores["generalization"],
        "locality": scores["locality"],
        "seconds_per_edit": seconds / edits,
        "reload_equal": reload_equal,
        "delete_restores": restored,
        "exact_match": _mean([one.said for one in freely]),
        "routes_changed": sum(one.changed for one in freely),
        "said": [one.answer for one in freely],
        "in_a_chat": [one.right for one in shown if one.kind == _IN_A_CHAT],
        "freer": [one.right for one in shown if one.kind == _FREER],
        "kept": [one.right for one in shown if one.kind == _KEPT],
        "neighbours": [one.right for one in shown if one.kind == _NEIGHBOUR],
        "shown": [_plain(one) for one in shown],
        "bytes_per_edit": memoir.status().bytes_per_edit,
        "learned": sum(result.learned for result in results),
        "steps_per_edit": sum(result.steps for result in results) / edits,
        "paraphrases_routed": scores["paraphrases_routed"],
        "false_matches": scores["false_matches"],
        "unrelated_prompts": len(asides),
        "recipe": recipe if isinstance(recipe, str) else recipe.method,
        "tau": memoir.tau,
        "false_match_rate": _FALSE_MATCH_RATE,
        "dtype": memoir.status().dtype,
        "device": memoir.status().device,
        "threads": torch.get_num_threads(),
    }
    demo_screen.figures(screen, figures)
    worked, words = verdict(figures)
    screen.print(words, style="bold" if worked else "bold red", markup=False)
    return figures


def verdict(figures: dict[str, Any]) -> tuple[bool, str]:
    """Whether the demo worked, and in a sentence what did, or what did not."""
    edits, said = figures["edits"], round(figures["exact_match"] * figures["edits"])
    failures = []
    if figures["exact_match"] < _SAID:
        failures.append(f"only {said} of {edits} facts are what the model says when it is asked")
    if figures["routes_changed"]:
        failures.append(
            f"{figures['routes_changed']} of {edits} answers did not follow their edit from the prompt to the end"
        )
    if not figures["reload_equal"]:
        failures.append("a new process that loads the memory computes something else")
    if not figures["delete_restores"]:
        failures.append("the deleted edit's prompt did not get its old answer back")
    if failures:
        return False, f"It did not work: {'; '.join(failures)}."
    return True, (
        f"It worked: asked freely, the model says {said} of {edits} facts as they were taught, follows each edit to "
        "the end of the answer, says the same in a new process, and forgets one when told to."
    )


def _freely(memoir: Memoir, taught: Sequence[Fact], results: Sequence[EditResult]) -> list[Freely]:
    """Each taught prompt, answered once, as any user would have it answered."""
    found = []
    for fact, result in zip(taught, results, strict=True):
        said, cache = generated(memoir.model, memoir.tokenizer, fact.prompt, _NEW_TOKENS)
        decided = [route.edit_id for route in memoir.last_routes]
        changed = not decided == memoir.followed(cache) == [result.edit_id]
        found.append(Freely(fact.prompt, fact.target, said, says(said, fact.target), changed))
    return found


def write_logits(
    model_name: str, dtype: str, device: str, threads: str, memory: str, prompts_file: str, output: str
) -> None:
    """In the new process: loads model and memory, and writes the logits of the prompts, one per line of the file."""
    torch.set_num_threads(int(threads))
    model, tokenizer = load_model(model_name, dtype, device)
    Memoir.from_pretrained(model, tokenizer, memory)
    prompts = Path(prompts_file).read_text(encoding="utf-8-sig").splitlines()
    _save_logits(_logits(model, tokenizer, prompts), output)


def _save_logits(logits: Sequence[torch.Tensor], path: str) -> None:
    safetensors.torch.save_file({f"{index:04d}": one for index, one in enumerate(logits)}, path)


@torch.no_grad()
def _logits(model: Any, tokenizer: Any, prompts: Sequence[str]) -> list[torch.Tensor]:
    """Logits [S, V] of each prompt, run by itself."""
    found = []
    for prompt in prompts:
        ids = torch.tensor([prompt_ids(tokenizer, prompt)], device=device_of(model))
        output = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        found.append(output.logits[0].cpu())
    return found


def _edit_of(fact: Fact) -> Edit:
    return Edit(fact.prompt, fact.target, keep=(fact.neighbour,) if fact.kept else (), subject=fact.subject)


class _Asked(NamedTuple):
    """A row of the table, before it is answered."""

    kind: str
    prompt: str
    text: str
    """The prompt as the model gets it."""
    target: str = ""


def _rows(tokenizer: Any, taught: Sequence[Fact], asides: Sequence[tuple[str, str]]) -> list[_Asked]:
    """The rows of the table, the first fact first."""
    rows = [_Asked("edit", fact.prompt, fact.prompt, fact.target) for fact in taught[:_SHOWN_FACTS]]
    chat = as_chat(tokenizer, taught[0].prompt)
    rows += [_Asked(_IN_A_CHAT, taught[0].prompt, chat, taught[0].target)] if chat else []
    for fact in taught[:_SHOWN_PARAPHRASES]:
        rows.append(_Asked("paraphrase", fact.paraphrases[0], fact.paraphrases[0], fact.target))
    rows += [_Asked(_FREER, fact.freer, fact.freer, fact.target) for fact in taught if fact.freer]
    for fact in sorted((one for one in taught if one.neighbour), key=lambda fact: not fact.kept):
        rows.append(_Asked(_KEPT if fact.kept else _NEIGHBOUR, fact.neighbour, fact.neighbour))
    return rows + [_Asked("unrelated", prompt, prompt) for prompt, _ in asides[:_SHOWN_UNRELATED]]


def _shown(memoir: Memoir, rows: Sequence[_Asked], old_answers: Sequence[str]) -> list[Shown]:
    """The rows of the table, answered again."""
    found = []
    for row, before in zip(rows, old_answers, strict=True):
        after = answer(memoir.model, memoir.tokenizer, row.text, _NEW_TOKENS)
        found.append(Shown(row.kind, row.prompt, row.target, before, after, memoir.last_routes[0]))
    return found


def _plain(row: Shown) -> dict[str, Any]:
    """A row of the table for JSON."""
    return {name: getattr(row, name) for name in ("kind", "prompt", "target", "before", "after", "right")}


def _compared(taught: Sequence[Fact], asides: Sequence[tuple[str, str]]) -> list[str]:
    some = taught[:_COMPARED]
    return [
        *(fact.prompt for fact in some),
        *(fact.paraphrases[0] for fact in some),
        *(prompt for prompt, _ in asides[:_COMPARED]),
    ]


def _scores(memoir: Memoir, taught: Sequence[Fact], asides: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Mean scores, how many paraphrases went to their own fact, and which unrelated prompts went anywhere."""
    own = teacher_forced(memoir, [(fact.prompt, fact.target) for fact in taught])
    wordings = [(index, text) for index, fact in enumerate(taught) for text in fact.paraphrases]
    others = teacher_forced(memoir, [(text, taught[index].target) for index, text in wordings])
    with memoir.disabled():
        before = teacher_forced(memoir, asides)
    after = teacher_forced(memoir, asides)
    ids = {edit.prompt: edit_id for edit_id, edit in memoir.edits.items()}
    right = [item.route.edit_id == ids[taught[index].prompt] for (index, _), item in zip(wordings, others, strict=True)]
    return {
        "reliability": _mean([item.accuracy for item in own]),
        "generalization": _mean([item.accuracy for item in others]),
        "locality": _mean([agreement(new.predicted, old.predicted) for new, old in zip(after, before, strict=True)]),
        "paraphrases_routed": _mean(right),
        "false_matches": sum(item.route.edit_id >= 0 for item in after),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _reloads_equal(memoir: Memoir, model_name: str, dtype: str, device: str, prompts: Sequence[str]) -> bool:
    """Saves the memory, loads it in a new process, and compares the logits of some prompts bit by bit."""
    here = _logits(memoir.model, memoir.tokenizer, prompts)
    with tempfile.TemporaryDirectory(prefix="memoir_fast-demo-") as name:
        folder = Path(name)
        memory, prompts_file, output = folder / "memory", folder / "prompts.txt", folder / "logits.safetensors"
        memoir.save_pretrained(memory)
        prompts_file.write_text("\n".join(prompts), encoding="utf-8")
        arguments = [model_name, dtype, device, str(torch.get_num_threads()), memory, prompts_file, output]
        command = [sys.executable, "-c", _RELOAD, json.dumps(sys.path), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
            raise MemoirError(f"the new process that loads the memory failed: {last[0]}")
        there = safetensors.torch.load_file(output)
    return len(there) == len(here) and all(torch.equal(one, there[f"{index:04d}"]) for index, one in enumerate(here))


def _delete_and_compare(
    screen: Console, memoir: Memoir, result: EditResult, old_logits: torch.Tensor, old_answer: str
) -> bool:
    """Deletes one edit; whether its prompt then gets what the unedited model says, bit by bit."""
    model, tokenizer = memoir.model, memoir.tokenizer
    edited = answer(model, tokenizer, result.prompt, _NEW_TOKENS)
    memoir.delete(result.edit_id)
    (logits,) = _logits(model, tokenizer, [result.prompt])
    again = answer(model, tokenizer, result.prompt, _NEW_TOKENS)
    demo_screen.deleted(screen, result.prompt, edited, again, old_answer)
    return torch.equal(logits, old_logits) and again == old_answer
