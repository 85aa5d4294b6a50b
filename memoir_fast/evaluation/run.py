"""One evaluation from a file of edits to a dictionary of figures; a run that was cut off goes on where it stopped."""

import dataclasses
import hashlib
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from memoir_fast import __version__
from memoir_fast.config import MemoirConfig
from memoir_fast.core import threshold
from memoir_fast.evaluation import baselines
from memoir_fast.evaluation.likelihood import text_perplexity
from memoir_fast.evaluation.margins import margins
from memoir_fast.evaluation.measure import Measured, Unedited, figures, from_json, measure, to_json, without_memory
from memoir_fast.evaluation.roc import roc_area
from memoir_fast.evaluation.run_folder import RunFolder
from memoir_fast.evaluation.team import Team
from memoir_fast.hf.presets import complete, find_layer
from memoir_fast.io.conflicts import conflicting_rows, conflicts
from memoir_fast.io.json_stream import objects
from memoir_fast.io.readers import Case, detect, read_cases, read_prompts
from memoir_fast.memoir import Memoir
from memoir_fast.modules.memoir_linear import linear_shape

_MILESTONES = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000)
_FIRST = 0.1  # share of the edits that retention follows, the first ones


@dataclass(frozen=True)
class Settings:
    """What is evaluated, and how."""

    model: str
    data: Path
    edits: int = 100
    format: str | None = None
    skip_unusable: bool = False
    """Leave rows out that lack a field, or have an empty one, instead of refusing the file."""
    subjects: bool = True
    """Tell the edits what their prompts are about, where the rows say."""
    when: str = "end"
    """"end": every case after all edits. "each": every case right after its own edit, as EasyEdit does."""
    recipe: str | None = None
    tau: float | str | None = None
    k: int | None = None
    layer: str | None = None
    further: int = 0
    """The memory is added to so many blocks' layers behind that."""
    seed: int = 0
    batch: int = 8
    baselines: tuple[str, ...] = ("unedited",)
    baseline_edits: int | None = None
    """Give baselines that have to learn only so many edits, the first ones. None: all."""
    irrelevant: Path | None = None
    """A file of further irrelevant prompts, in any format or a line each: they must match no edit."""
    text: Path | None = None
    """A text whose perplexity is taken before and after."""
    free: bool = True
    """Let the model answer freely too."""
    checkpoint_every: int = 25
    dtype: str = "auto"
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.when not in ("end", "each"):
            raise ValueError(f"when must be 'end' or 'each', got {self.when!r}")
        for name in ("edits", "batch", "checkpoint_every", "baseline_edits"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        baselines.names(",".join(self.baselines))

    @property
    def config(self) -> MemoirConfig:
        """The memory's settings."""
        given: dict[str, Any] = {"recipe": self.recipe, "tau": self.tau, "k": self.k, "layer": self.layer}
        return MemoirConfig(
            seed=self.seed, further=self.further, **{name: value for name, value in given.items() if value is not None}
        )

    def params(self) -> dict[str, Any]:
        """Plain values of everything that decides the results, the files' contents included."""
        values = {
            name: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }
        for name in ("data", "irrelevant", "text"):
            path = getattr(self, name)
            values[f"{name}_sha256"] = None if path is None else hashlib.sha256(path.read_bytes()).hexdigest()
        return {**values, "memoir_fast": __version__}


@dataclass
class Data:
    """What the files hold, read in full before any work begins."""

    cases: list[Case]
    format: str
    conflicts: list[Any]
    irrelevant: list[str] = field(default_factory=list)
    unusable: list[str] = field(default_factory=list)
    """Rows that were left out, and why."""
    text: str | None = None

    @property
    def free_of_conflict(self) -> set[int]:
        """Rows that no other row contradicts."""
        return {case.row for case in self.cases} - conflicting_rows(self.conflicts)


def load_data(settings: Settings) -> Data:
    """Reads and checks every file. ValueError, naming file, line and field; OSError."""
    unusable: list[str] = []
    skipping = unusable if settings.skip_unusable else None
    cases = list(read_cases(settings.data, settings.format, settings.edits, skipping))
    if not cases:
        raise ValueError(f"{settings.data}: none of the {len(unusable)} rows looked at can be used; {unusable[0]}")
    irrelevant = read_prompts(settings.irrelevant) if settings.irrelevant else []
    try:
        text = settings.text.read_text(encoding="utf-8-sig") if settings.text else None
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{settings.text}: byte 0x{error.object[error.start]:02x} is not UTF-8; save it as UTF-8"
        ) from error
    found = conflicts(cases)
    if not settings.subjects:
        cases = [dataclasses.replace(case, subject=None) for case in cases]
    records = objects(settings.data)
    kind = settings.format or detect(next(records)[1])
    for _ in records:  # a file that is cut off behind the rows taken is no less broken
        pass
    return Data(cases, kind, found, irrelevant, unusable, text)


def evaluate(
    settings: Settings,
    data: Data,
    load_model: Callable[[], tuple[Any, Any]],
    folder: RunFolder,
    progress: bool = False,
    team: Team | None = None,
) -> dict[str, Any]:
    """Runs what `folder` does not hold yet, and returns all figures in plain values.

    Args:
        settings (Settings): what to do.
        data (Data): from `load_data`.
        load_model: returns (model, tokenizer).
        folder (RunFolder): where the run keeps what it has.
        progress (bool): show progress bars. Default: False.
        team (Team, optional): processes that measure together; `folder` is then a `SharedRunFolder`. Default: this one.
    """
    model, tokenizer = load_model()
    run = _Run(settings, data, model, tokenizer, folder, progress, team or Team())

    def stage(name: str, what: str, act: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        def told() -> dict[str, Any]:
            if progress:
                tqdm.write(what, file=sys.stderr)
            return act()

        return folder.stage(name, told)

    before = stage("unedited", "measuring the unedited model", run.unedited)
    plain = [Unedited(**one) for one in before["cases"]]
    main = stage("main", "teaching the edits and measuring them", lambda: run.learn_and_measure(plain))
    compared = {"unedited": before["figures"]} if "unedited" in settings.baselines else {}
    for name in settings.baselines:
        if name != "unedited":
            what = f"teaching and measuring the baseline {name}"
            compared[name] = stage(f"baseline-{name}", what, partial(run.baseline, name, plain))
    return _result(settings, data, main, compared, before)


@dataclass
class _Run:
    """A model, the cases, and the stages of an evaluation."""

    settings: Settings
    data: Data
    model: Any
    tokenizer: Any
    folder: RunFolder
    progress: bool
    team: Team
    _irrelevant: torch.Tensor | None = field(default=None, init=False)

    def unedited(self) -> dict[str, Any]:
        """Figures of the model as it came, and what it says of each case."""
        with self._attached(self.settings.config) as memoir:
            batch = self.settings.batch
            plain = self.team.measured(self.data.cases, lambda own: without_memory(memoir, own, batch))
            measured = self._measure(memoir, self.data.cases, plain, thorough=True)
            text = text_perplexity(memoir, self.data.text) if self.data.text else None
        said = [dataclasses.asdict(one) for one in plain]
        return {"cases": said, "figures": self._figures(measured), "text_perplexity": text}

    def learn_and_measure(self, plain: list[Unedited]) -> dict[str, Any]:
        """Learns all edits, measuring on the way, and measures in the end."""
        _, saved = self.folder.memory
        results = self.folder.edits
        if saved is None:
            attached: AbstractContextManager[Memoir] = self._attached(self.settings.config)
        else:
            attached = _detaching(Memoir.from_pretrained(self.model, self.tokenizer, saved))
        with attached as memoir:
            self._learn(memoir, results, plain)
            cases = self.data.cases
            measured = self._measure(memoir, cases, plain, thorough=True)
            overlaps, around = self._irrelevant_overlaps(memoir), margins(memoir, cases)
            matched = self._irrelevant_matched(memoir)
            text = text_perplexity(memoir, self.data.text) if self.data.text else None
            status = dataclasses.asdict(memoir.status())
            config, tau = memoir.config.to_dict(), memoir.tau
        return {
            "measured": to_json(measured),
            "results": results,
            "irrelevant_overlaps": overlaps,
            "irrelevant_matched": matched,
            "margins": around,
            "text_perplexity": text,
            "tau": tau,
            "config": config,
            "status": status,
            "threads": torch.get_num_threads(),
        }

    def _learn(self, memoir: Memoir, results: list[dict[str, Any]], plain: list[Unedited]) -> None:
        """Learns the edits that are not in `results` yet, and appends what became of them."""
        cases, every = self.data.cases, self.settings.checkpoint_every
        milestones = {count for count in _MILESTONES if count < len(cases)} | {len(cases)}
        kept = len(results)
        with tqdm(total=len(cases), initial=len(results), desc="editing", disable=not self.progress) as bar:
            while len(results) < len(cases):
                start = len(results)
                stops = [count for count in milestones if count > start]
                end = start + 1 if self.settings.when == "each" else min(*stops, start + every, len(cases))
                learned = memoir.edit([case.edit for case in cases[start:end]], progress=False)
                results += [dataclasses.asdict(one) for one in learned]
                if self.settings.when == "each":
                    (one,) = self._measure(memoir, cases[start:end], plain[start:end], thorough=True)
                    results[-1]["measured"] = dataclasses.asdict(one)
                if end in milestones:
                    self.folder.stage(f"after-{end:06d}", partial(self._milestone, memoir, end, plain))
                if end in milestones or end - kept >= every:
                    self.folder.checkpoint(results, memoir.save_pretrained)
                    kept = end
                bar.update(end - start)

    def _milestone(self, memoir: Memoir, count: int, plain: list[Unedited]) -> dict[str, Any]:
        """Figures of the first `count` cases after as many edits, and of the first of them all."""
        measured = self._measure(memoir, self.data.cases[:count], plain[:count], thorough=False)
        first = max(1, round(_FIRST * len(self.data.cases)))
        return {
            "edits": count,
            "tau": memoir.tau,
            "first": figures(measured[:first]),
            "false_matches": self._irrelevant_matched(memoir),
            **self._figures(measured),
        }

    def _irrelevant_overlaps(self, memoir: Memoir) -> list[float]:
        if not self.data.irrelevant:
            return []
        if self._irrelevant is None:  # edits do not change what lies below the edited layer
            self._irrelevant = threshold.prompt_masks(memoir, self.data.irrelevant)
        return threshold.overlap_ratios(memoir, self._irrelevant)

    def _irrelevant_matched(self, memoir: Memoir) -> int:
        return sum(threshold.matched(memoir, self.data.irrelevant)) if self.data.irrelevant else 0

    def baseline(self, name: str, plain: list[Unedited]) -> dict[str, Any]:
        """Figures of one baseline."""
        cases = self.data.cases[: self.settings.baseline_edits]
        plain = plain[: len(cases)]
        started = time.perf_counter()
        with ExitStack() as stack:
            if name == "ft":
                memoir = stack.enter_context(self._attached(self.settings.config))
                stack.enter_context(baselines.fine_tuned(memoir, [case.edit for case in cases]))
            else:
                memoir = stack.enter_context(self._ablated(name))
                memoir.edit([case.edit for case in cases], progress=False)
            seconds = (time.perf_counter() - started) / len(cases)
            measured = self._measure(memoir, cases, plain, thorough=False)
            return {**self._figures(measured), "tau": memoir.tau, "k": memoir.config.k, "seconds_per_edit": seconds}

    def _ablated(self, name: str) -> AbstractContextManager[Memoir]:
        layer = complete(self.settings.config, self.model).layer
        width, _ = linear_shape(find_layer(self.model, layer or ""))
        changed = baselines.settings(name, self.settings.config, width)
        if name in ("always-on", "random-mask"):
            changed = changed.replace(tau=0.5)  # no calibration: it would find a threshold again
        attached = Memoir.attach(self.model, self.tokenizer, changed)
        baselines.ablate(attached, name)
        return _detaching(attached)

    def _attached(self, config: MemoirConfig) -> AbstractContextManager[Memoir]:
        return _detaching(Memoir.attach(self.model, self.tokenizer, config))

    def _measure(
        self, memoir: Memoir, cases: Sequence[Case], plain: Sequence[Unedited], *, thorough: bool
    ) -> list[Measured]:
        likelihood = thorough and self.data.format in ("hallucination", "temporal")
        free = thorough and self.settings.free
        with memoir.banks({case.bank for case in cases}):  # what was taught in a bank is asked there
            how = partial(measure, memoir, batch=self.settings.batch, free=free, likelihood=likelihood)
            return self.team.measured(list(zip(cases, plain, strict=True)), lambda own: how(*_unzipped(own)))

    def _figures(self, measured: Sequence[Measured]) -> dict[str, Any]:
        """Figures on all rows, and on those that no other row contradicts."""
        clean = [one for one in measured if one.row in self.data.free_of_conflict]
        return {**figures(measured), "conflict_free": figures(clean) if clean else None}


def _unzipped(pairs: Sequence[tuple[Case, Unedited]]) -> tuple[list[Case], list[Unedited]]:
    return [case for case, _ in pairs], [plain for _, plain in pairs]


class _detaching(AbstractContextManager[Memoir]):
    """The memory, taken off at the block's end."""

    def __init__(self, memoir: Memoir) -> None:
        self._memoir = memoir

    def __enter__(self) -> Memoir:
        return self._memoir

    def __exit__(self, *_: object) -> None:
        self._memoir.detach()


def _result(
    settings: Settings, data: Data, main: dict[str, Any], compared: dict[str, Any], before: dict[str, Any]
) -> dict[str, Any]:
    """Everything in one dictionary: first the fields that are always there, then what explains them."""
    results = main["results"]
    at_end = from_json(main["measured"])
    chosen = at_end
    if settings.when == "each":
        chosen = [Measured(**one["measured"]) for one in results]
    clean = [one for one in chosen if one.row in data.free_of_conflict]
    total = figures(chosen)
    negative = [overlap for one in chosen for overlap in one.locality_overlaps] + main["irrelevant_overlaps"]
    positive = [overlap for one in chosen for overlap in one.paraphrase_overlaps]
    return {
        "model": settings.model,
        "data": str(settings.data),
        "edits": len(data.cases),
        "seed": settings.seed,
        **{name: total[name] for name in ("reliability", "generalization", "locality", "average")},
        **{name: total[name] for name in ("exact_match", "f1")},
        "false_matches": total["false_matches"] + main["irrelevant_matched"],
        "tau": main["tau"],
        "seconds_per_edit": sum(one["seconds"] for one in results) / len(results),
        "baselines": compared,
        "per_edit": [
            {**_learned(one), **dataclasses.asdict(measured)} for one, measured in zip(results, chosen, strict=True)
        ],
        "irrelevant": total["irrelevant"] + len(main["irrelevant_overlaps"]),
        "when": settings.when,
        "format": data.format,
        "all_rows": total,
        "conflict_free": figures(clean) if clean else None,
        "conflicts": [{"reason": one.reason, "rows": list(one.rows)} for one in data.conflicts],
        "unusable": data.unusable,
        "at_end": figures(at_end) if settings.when == "each" else None,
        "roc_area": roc_area(positive, negative) if positive and negative else None,
        "irrelevant_overlaps": main["irrelevant_overlaps"],
        "margins": main["margins"],
        "text_perplexity": {"before": before["text_perplexity"], "after": main["text_perplexity"]}
        if data.text
        else None,
        "learned": sum(one["learned"] for one in results),
        "steps_per_edit": sum(one["steps"] for one in results) / len(results),
        "threads": main["threads"],
        "config": main["config"],
        "status": main["status"],
        "params": settings.params(),
    }


def _learned(result: dict[str, Any]) -> dict[str, Any]:
    """What became of one edit, without what was measured of it."""
    return {name: value for name, value in result.items() if name not in ("measured", "edit_id")}


def milestones(folder: RunFolder) -> list[dict[str, Any]]:
    """What was measured on the way, by number of edits."""
    return folder.finished("after-*")
