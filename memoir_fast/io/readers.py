"""The field's own files of edits, read one record at a time into `Case`.

| format | what it is | recognised by |
| --- | --- | --- |
| zsre | ZsRE as MEND and WISE use it | src, alt |
| counterfact | CounterFact, flat as in EasyEdit | prompt, target_new, rephrase_prompt, locality_prompt |
| rome | CounterFact, native records of ROME | requested_rewrite |
| hallucination | SelfCheckGPT as WISE uses it | prompt, target_new, locality_prompt, nothing to rephrase |
| temporal | WISE's out-of-distribution set | prompt, target_new, ood_rephrase |
| unke | UnKE | question, answer, para_question |
| knowedit | wiki_recent, wiki_counterfact, WikiBio, ZsRE | locality or portability as an object; text and labels |
| knowedit | requests of EasyEdit | prompt, target_new, no locality_prompt |
| wikibigedit | WikiBigEdit, and UltraEdit's files | ans, with update, src or prompt |
| nq | Natural Questions open | question, answer |
| jsonl | this package's own | prompt, target |
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from memoir_fast.core.edit import Edit, require_line, subject_in
from memoir_fast.io.fields import Fields, Pair
from memoir_fast.io.json_stream import objects


@dataclass(frozen=True)
class Case:
    """One row of a file: an edit, and what it is measured by."""

    prompt: str
    target: str
    subject: str | None = None
    """What the prompt is about, where the file tells."""
    truth: str | None = None
    """The answer that was right before the edit, where the file tells."""
    paraphrases: tuple[str, ...] = ()
    locality: tuple[Pair, ...] = ()
    """(prompt, answer) whose output the edit must not change."""
    neighbours: tuple[Pair, ...] = ()
    """Those of `locality` that ask the edit's own relation of another subject; the others are unrelated to it."""
    portability: tuple[Pair, ...] = ()
    """(prompt, answer) that follow from the edit."""
    ood: str | None = None
    """A text on the subject, of another style, that the edited model is to find likely."""
    taught: tuple[str, ...] = ()
    """Paraphrases that the edit is given; nothing is measured by them."""
    keep: tuple[str, ...] = ()
    """Prompts that the edit is told to leave alone; nothing is measured by them."""
    bank: str = ""
    """The bank that the edit is put into."""
    author: str = ""
    """Who asks for the edit."""
    source: str = ""
    """Where the edit comes from."""
    row: int = 0
    """Place in the file, from 1."""

    @property
    def edit(self) -> Edit:
        """The request, with the row's subject where its prompt and the paraphrases that it is given name it."""
        about = subject_in(self.subject, self.prompt, *self.taught)
        return Edit(
            self.prompt, self.target, self.taught, self.keep, self.bank, self.author, self.source, subject=about
        )


def read_cases(
    path: str | os.PathLike,
    format: str | None = None,
    limit: int | None = None,
    unusable: list[str] | None = None,
) -> Iterator[Case]:
    """The rows of a file, one at a time; no more than `limit` are looked at.

    Args:
        path (str | PathLike): a JSON list or JSON lines.
        format (str, optional): one of FORMATS. Default: recognised by the first record's fields.
        limit (int, optional): at least 1. Default: all.
        unusable (list, optional): takes, row by row, what would have been raised of a record without a field, or with
            an empty one; such rows are left out. Default: raise it. A file that is broken is raised all the same.

    Raises:
        ValueError: a file that is broken, of no known format, or holds a record without a field that its format needs,
            or with an empty one; the message names file, line, row and field.
        OSError: the file cannot be read.

    Example:
        >>> import json, pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "edits.jsonl"
        >>> _ = path.write_text(json.dumps({"prompt": "The capital of France is", "target": "Lyon"}))
        >>> next(read_cases(path)).target
        'Lyon'
    """
    if format is not None and format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    records = objects(path)
    first = next(records)
    try:
        read = FORMATS[format or detect(first[1])]
    except ValueError as error:
        raise ValueError(f"{path}, line {first[0]}: {error}") from None
    for row, (line, values) in enumerate(islice(chain([first], records), limit), start=1):
        try:
            yield read(Fields(values), row)
        except ValueError as error:
            message = f"{path}, line {line} (row {row}): {error}"
            if unusable is None:
                raise ValueError(message) from None
            unusable.append(message)


def read_prompts(path: str | os.PathLike) -> list[str]:
    """The prompts of a file: the lines that are not blank, where its name ends in .txt, else those of its cases.

    Raises:
        ValueError: as `read_cases`; a byte that is not UTF-8; no prompt at all.
        OSError: the file cannot be read.
    """
    if Path(path).suffix != ".txt":
        return [case.prompt for case in read_cases(path)]
    try:
        prompts = [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}, line {line}: byte 0x{error.object[error.start]:02x} is not UTF-8; save it as UTF-8"
        ) from error
    if not prompts:
        raise ValueError(f"{path} is empty")
    return prompts


def detect(values: dict[str, Any]) -> str:
    """The format of a record. ValueError with the fields found where none fits."""
    has = values.keys()
    for name, fits in (
        ("rome", "requested_rewrite" in has),
        ("zsre", {"src", "alt"} <= has),
        ("temporal", "ood_rephrase" in has),
        ("knowedit", {"text", "labels"} <= has or any(isinstance(values.get(n), dict) for n in _NESTED)),
        ("counterfact", {"prompt", "target_new", "rephrase_prompt", "locality_prompt"} <= has),
        ("hallucination", {"prompt", "target_new", "locality_prompt"} <= has),
        ("knowedit", {"prompt", "target_new"} <= has),
        ("wikibigedit", "ans" in has and not has.isdisjoint(_ASKED)),
        ("unke", {"question", "answer", "para_question"} <= has),
        ("nq", {"question", "answer"} <= has),
        ("jsonl", {"prompt", "target"} <= has),
    ):
        if fits:
            return name
    raise ValueError(
        f"no known format has the fields {sorted(has)}; known are {', '.join(FORMATS)}; "
        'your own edits are read from {"prompt": "...", "target": "..."}, one on each line'
    )


_NESTED = ("locality", "portability")
_ASKED = ("update", "src", "prompt")


def _zsre(fields: Fields, row: int) -> Case:
    portability: tuple[Pair, ...] = ()
    if "portability" in fields:
        portability = fields.inner("portability").pair("New Question", "New Answer")
    return Case(
        prompt=fields.prompt("src"),
        target=fields.text("alt"),
        subject=fields.optional("subject"),
        truth=fields.optional("answers", "pred"),
        paraphrases=(fields.text("rephrase"),),
        locality=fields.pair("loc", "loc_ans"),
        portability=portability,
        row=row,
    )


def _counterfact(fields: Fields, row: int) -> Case:
    neighbours = fields.pair("locality_prompt", "locality_ground_truth")
    return Case(
        prompt=fields.prompt("prompt"),
        target=fields.text("target_new"),
        subject=fields.optional("subject"),
        truth=fields.optional("ground_truth"),
        paraphrases=(fields.text("rephrase_prompt"),),
        locality=neighbours,
        neighbours=neighbours,
        row=row,
    )


def _rome(fields: Fields, row: int) -> Case:
    request = fields.inner("requested_rewrite")
    subject, truth = request.text("subject"), request.inner("target_true").text("str")
    template = request.text("prompt")
    if "{}" not in template:
        raise ValueError(f"the field 'prompt' of 'requested_rewrite' needs a {{}} for its subject, got {template!r}")
    neighbours = tuple((prompt, truth) for prompt in fields.texts("neighborhood_prompts"))
    return Case(
        prompt=template.replace("{}", subject),
        target=request.inner("target_new").text("str"),
        subject=subject,
        truth=truth,
        paraphrases=fields.texts("paraphrase_prompts"),
        locality=neighbours,
        neighbours=neighbours,
        row=row,
    )


def _hallucination(fields: Fields, row: int) -> Case:
    return Case(
        prompt=fields.prompt("prompt"),
        target=fields.text("target_new"),
        subject=fields.optional("subject"),
        locality=fields.pair("locality_prompt", "locality_ground_truth"),
        row=row,
    )


def _temporal(fields: Fields, row: int) -> Case:
    return replace(_hallucination(fields, row), ood=fields.text("ood_rephrase"))


def _unke(fields: Fields, row: int) -> Case:
    questions, answers = fields.texts("sub_question"), fields.texts("sub_answer")
    if len(questions) != len(answers):
        raise ValueError(f"{len(questions)} texts in 'sub_question' have {len(answers)} in 'sub_answer'")
    return Case(
        prompt=fields.prompt("question"),
        target=fields.text("answer"),
        paraphrases=(fields.text("para_question"),),
        portability=tuple(zip(questions, answers, strict=True)),
        row=row,
    )


def _knowedit(fields: Fields, row: int) -> Case:
    return Case(
        prompt=fields.prompt("prompt", "text"),
        target=fields.text("target_new", "labels"),
        subject=fields.optional("subject", "concept"),
        truth=fields.optional("ground_truth"),
        paraphrases=fields.texts("rephrase_prompt") or fields.texts("rephrase"),
        locality=fields.pairs("locality", "prompt", "ground_truth"),
        portability=fields.pairs("portability", "prompt", "ground_truth"),
        row=row,
    )


def _wikibigedit(fields: Fields, row: int) -> Case:
    return Case(
        prompt=fields.prompt(*_ASKED),
        target=fields.text("ans"),
        subject=fields.optional("subject"),
        paraphrases=fields.texts("rephrase") or fields.texts("rephrase_prompt"),
        locality=fields.pair("loc", "loc_ans"),
        portability=fields.answered("personas", "ans") + fields.answered("mhop", "mhop_ans"),
        row=row,
    )


def _nq(fields: Fields, row: int) -> Case:
    return Case(prompt=fields.prompt("question"), target=fields.text("answer"), row=row)


_MEASURED = ("paraphrases", "locality", "neighbours", "portability")
_OWN = ("prompt", "target", "subject", "taught_paraphrases", "keep", "bank", "author", "source", *_MEASURED)
_TOLD = ("truth", "id", "taught_at")  # nothing is decided by them


def _jsonl(fields: Fields, row: int) -> Case:
    fields.require_no_misspelling({*_OWN, *_TOLD}, _OWN)
    neighbours = fields.pairs("neighbours", "prompt", "answer")
    return Case(
        prompt=fields.prompt("prompt"),
        target=fields.text("target"),
        subject=fields.optional("subject"),
        truth=fields.optional("truth"),
        paraphrases=fields.texts("paraphrases"),
        locality=fields.pairs("locality", "prompt", "answer") + neighbours,
        neighbours=neighbours,
        portability=fields.pairs("portability", "prompt", "answer"),
        taught=fields.texts("taught_paraphrases"),
        keep=fields.texts("keep"),
        **{name: require_line(name, fields.optional(name) or "") for name in ("bank", "author", "source")},
        row=row,
    )


FORMATS: dict[str, Callable[[Fields, int], Case]] = {
    "zsre": _zsre,
    "counterfact": _counterfact,
    "rome": _rome,
    "hallucination": _hallucination,
    "temporal": _temporal,
    "unke": _unke,
    "knowedit": _knowedit,
    "wikibigedit": _wikibigedit,
    "nq": _nq,
    "jsonl": _jsonl,
}
