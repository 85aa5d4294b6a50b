"""A long stream of edits, one after another, and what is left of each hundred of them.

`python bench/stream.py --data ZSRE.json --data COUNTERFACT.json --edits 5000 --folder RUN` teaches SmolLM2-135M the
rows of the files in their order, each prompt once. It goes on where it was stopped: the memory is kept in RUN/memory
by its journal. At each mark all edits so far are measured: RUN/stream.json has the figures, RUN/stream.png the plot.
`--first 3000` leaves out as many rows, so that two processes can teach: `memoir merge` joins their memories, which this
measures then, with nothing left to teach. `--refresh` teaches again at the end what has faded, and measures once more.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from memoir_fast import Memoir
from memoir_fast.atomic import replace
from memoir_fast.core.scoring import locality, target_accuracy, teacher_forced
from memoir_fast.hf.loading import load_model
from memoir_fast.io.readers import Case, read_cases

MARKS = (100, 300, 1000, 3000, 5000)
LOCALITY = 200  # unrelated prompts that are asked at each mark


def stream(files: Sequence[Path], edits: int) -> list[Case]:
    """The first rows of the files, each prompt once, those that cannot be used left out."""
    found: dict[str, Case] = {}
    for file in files:
        for case in read_cases(file, unusable=[]):
            found.setdefault(case.prompt, case)
    return list(found.values())[:edits]


def measured(memoir: Memoir, cases: Sequence[Case]) -> dict[str, Any]:
    """Figures of edits that were taught, as they are now.

    Rel, and Gen of each first paraphrase, by routing, and with each prompt's own edit given; Loc of unrelated prompts;
    of each hundred, Rel by routing and Gen given, None where none of the hundred has a paraphrase.
    """
    own, own_given = _said(memoir, [(case, case.prompt) for case in cases])
    again = [(place, case) for place, case in enumerate(cases) if case.paraphrases]
    reworded, reworded_given = _said(memoir, [(case, case.paraphrases[0]) for _, case in again])
    unrelated = [pair for case in cases for pair in case.locality if pair not in case.neighbours][:LOCALITY]
    starts = range(0, len(cases), 100)
    kept = [
        [one for (place, _), one in zip(again, reworded_given, strict=True) if place // 100 == start // 100]
        for start in starts
    ]
    return {
        "edits": len(cases),
        "reliability": _mean(own),
        "reliability_given": _mean(own_given),
        "generalization": _mean(reworded),
        "generalization_given": _mean(reworded_given),
        "locality": _mean(locality(memoir, unrelated)) if unrelated else None,
        "hundreds": [_mean(own[start : start + 100]) for start in starts],
        "generalization_given_hundreds": [_mean(some) for some in kept],
        "pages": memoir.status().pages,
    }


def _said(memoir: Memoir, asked: Sequence[tuple[Case, str]]) -> tuple[list[float], list[float]]:
    """Share of each target's tokens that are said at these prompts: by routing, and with the case's own edit given."""
    found = teacher_forced(memoir, [(prompt, case.target) for case, prompt in asked])
    given = []
    for (case, prompt), one in zip(asked, found, strict=True):
        edit_id = memoir.edits.id_of(case.prompt)
        assert edit_id is not None
        if one.route.edit_id == edit_id:
            given.append(one.accuracy)
        else:
            with memoir.routed(edit_id):
                given += target_accuracy(memoir, [(prompt, case.target)])
    return [one.accuracy for one in found], given


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def run(memoir: Memoir, cases: Sequence[Case], marks: Sequence[int], file: Path, say: Callable[[str], None]) -> None:
    """Teaches what is not taught yet, measures at each mark that `file` lacks, and writes it there."""
    figures = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    done = {one["edits"] for one in figures}
    for mark in sorted({*(one for one in marks if one < len(cases)), len(cases)}):
        started, before = time.process_time(), len(memoir.edits)
        wanted = [case.edit for case in cases[:mark] if memoir.edits.id_of(case.prompt) is None]
        for _ in tqdm(memoir.edit_stream(wanted), total=len(wanted), desc=f"to {mark} edits", disable=None):
            pass
        seconds = (time.process_time() - started) / max(1, len(memoir.edits) - before)
        if mark in done:
            continue
        one = {**measured(memoir, cases[:mark]), "seconds_per_edit": seconds if wanted else None}
        _note(figures, one, file, say)


def refresh(memoir: Memoir, cases: Sequence[Case], file: Path, say: Callable[[str], None]) -> None:
    """Teaches again what has faded, measures once more, and adds that to `file`, where it is not there yet."""
    figures = json.loads(file.read_text(encoding="utf-8"))
    if not any("refreshed" in one for one in figures):
        again = memoir.refresh(progress=False)
        _note(figures, {**measured(memoir, cases), "refreshed": len(again)}, file, say)


def _note(figures: list[dict[str, Any]], one: dict[str, Any], file: Path, say: Callable[[str], None]) -> None:
    figures.append(one)
    replace(file, json.dumps(figures, indent=1).encode())
    say(json.dumps(one))


def plot(file: Path, image: Path) -> None:
    """What each hundred of edits says at each mark."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.5), layout="constrained")
    for one in json.loads(file.read_text(encoding="utf-8")):
        places = [100 * number + 50 for number in range(len(one["hundreds"]))]
        name = "after refresh" if "refreshed" in one else f"after {one['edits']:,} edits"
        axes.plot(places, one["hundreds"], marker=".", label=name)
    axes.set(xlabel="edit, by hundreds", ylabel="reliability", ylim=(0.8, 1.005), title="What is left of each hundred")
    axes.legend(fontsize=8, loc="lower left")
    figure.savefig(image, dpi=120)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="a hub id, a local folder, or smollm2")
    parser.add_argument("--data", type=Path, action="append", required=True, help="a file of edits; may be given again")
    parser.add_argument("--folder", type=Path, required=True, help="where the memory and the figures are kept")
    parser.add_argument("--edits", type=int, default=5000, help="rows in all, those that are left out among them")
    parser.add_argument("--first", type=int, default=0, help="rows that are left out")
    parser.add_argument("--marks", type=int, nargs="+", default=MARKS)
    parser.add_argument("--refresh", action="store_true", help="teach again at the end what has faded")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="float32")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    cases = stream(given.data, given.edits)[given.first :]
    given.folder.mkdir(parents=True, exist_ok=True)
    model, tokenizer = load_model(given.model, given.dtype, "auto")
    with Memoir.open(model, tokenizer, given.folder / "memory") as memoir:
        run(memoir, cases, given.marks, given.folder / "stream.json", print)
        if given.refresh:
            refresh(memoir, cases, given.folder / "stream.json", print)
    memoir.detach()
    plot(given.folder / "stream.json", given.folder / "stream.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
