"""Where the time of an edit goes: milliseconds per edit of each phase of learning, one edit at a time and in batches.

    python bench/bench_edit_phases.py [--json FILE] [--edits 32] [--batch 8] [--threads 1] [--gpu]

On the CPU the packaged SmolLM2-135M in bfloat16, where torch multiplies bfloat16 as fast as it can; with --gpu a Llama
of LLaMA-3-8B's sizes with random bfloat16 weights, built on the device. A random model's edits say nothing of quality
and would be learned in one step: each takes STEPS, what a trained model's take, which are as dear as those.
"""

import argparse
import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from statistics import median
from typing import Any
from unittest import mock

import torch
from benchmark import Benchmark, Predicted, told
from cases import Settings
from models import llama_8b, sharing
from predict import Row, Work

from memoir_fast import Memoir
from memoir_fast.editing.active_rows import ActiveRows
from memoir_fast.editing.batch import Batch
from memoir_fast.editing.interference import Interference
from memoir_fast.editing.teacher import Teacher
from memoir_fast.errors import MemoirError
from memoir_fast.hf.loading import load_model
from memoir_fast.io.facts import facts

PHASES: dict[str, tuple[tuple[Any, str], ...]] = {
    "tokens": ((Teacher, "prepare"),),
    "trunk and hash": ((Batch, "__init__"),),
    "damping": ((Interference, "damping"), (Interference, "add")),
    "tail forward": ((Batch, "losses"),),
    "tail backward": ((torch.autograd, "grad"),),
    "optimizer": ((ActiveRows, "residual"), (ActiveRows, "step")),
    "write": ((Teacher, "_commit"),),
}
"""Each phase's functions; none runs inside of another."""

GPU_TARGETS = {"sequential": 60.0, "batched": 30.0}  # ms per edit, LLaMA-3-8B
STEPS = 8


@contextmanager
def within_phases(block: Callable[[str], AbstractContextManager[None]]) -> Iterator[None]:
    """Within the block, every call of a phase's functions runs within `block(phase)`."""

    def wrapped(phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with block(phase):
                return function(*args, **kwargs)

        return call

    with ExitStack() as patches:
        for phase, functions in PHASES.items():
            for owner, name in functions:
                patches.enter_context(mock.patch.object(owner, name, wrapped(phase, getattr(owner, name))))
        yield


@contextmanager
def clocks(synchronize: Callable[[], Any]) -> Iterator[dict[str, float]]:
    """Seconds that each phase takes within the block; the device is waited for at both ends of every call."""
    spent = dict.fromkeys(PHASES, 0.0)

    @contextmanager
    def clock(phase: str) -> Iterator[None]:
        synchronize()
        start = time.perf_counter()
        try:
            yield
        finally:
            synchronize()
            spent[phase] += time.perf_counter() - start

    with within_phases(clock):
        yield spent


def measure_phases(model: Any, tokenizer: Any, edits: int, batch: int, steps: int | None = None) -> dict[str, Any]:
    """Milliseconds per edit, sequential and in batches: alone, then once more with a clock at every phase.

    With `steps` every edit takes so many, whatever its loss. The clocks make the device wait, so the phases' sum may
    exceed the time without them; shares are of their own run.
    """
    taught = [(fact.prompt, fact.target) for fact in facts()[: edits + batch]]
    warm, taught = taught[:batch], taught[batch:]
    device = next(model.parameters()).device

    def synchronize() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    found: dict[str, Any] = {"edits": edits, "batch_size": batch, "threads": torch.get_num_threads()}
    prefixes: list[str] = []
    for name, size in (("sequential", 1), ("batched", batch)):
        memoir = Memoir.attach(sharing(model), tokenizer)
        memoir.prefixes = prefixes or memoir._first_prefixes(memoir.config.learned.prefixes)
        prefixes = memoir.prefixes
        recipe = memoir.config.learned
        if steps is not None:
            recipe = dataclasses.replace(recipe, steps=steps, bar=0.0)
        for _ in range(2):
            memoir.edit(warm, recipe=recipe, batch=size, progress=False)
        half = len(taught) // 2
        plain = memoir.edit(taught[:half], recipe=recipe, batch=size, progress=False)
        with clocks(synchronize) as spent:
            clocked = memoir.edit(taught[half:], recipe=recipe, batch=size, progress=False)
        total = sum(result.seconds for result in clocked) + spent["write"]
        found[name] = {
            "ms_per_edit": 1e3 * sum(result.seconds for result in plain) / half,
            "median_ms": 1e3 * median(result.seconds for result in plain),
            "ms_per_step": 1e3 * sum(result.seconds for result in plain) / sum(result.steps for result in plain),
            "steps": sum(result.steps for result in plain) / half,
            "learned": sum(result.learned for result in plain) / half,
            "phases_ms": {phase: 1e3 * seconds / len(clocked) for phase, seconds in spent.items()},
            "shares": {phase: seconds / total for phase, seconds in spent.items()},
            "rest": 1 - sum(spent.values()) / total,
        }
        memoir.detach()
    return found


def rows(settings: Settings, _: object) -> Iterator[dict[str, Any]]:
    """One row for the driver; a quick run teaches four facts, with or without a GPU to the packaged model."""
    large = settings.device != "cpu" and not settings.quick
    name = "LLaMA-3-8B's shape" if large else "SmolLM2-135M"
    row: dict[str, Any] = {
        "bench": "edit_phases",
        "case": f"{name}, bfloat16",
        "parameters": {"model": name, "dtype": "bfloat16", "device": settings.device},
    }
    try:
        model, tokenizer = llama_8b() if large else load_model("smollm2", "bfloat16", settings.device)
    except MemoirError as error:
        yield row | {"absent": str(error)}
        return
    model.requires_grad_(False)
    edits, batch = (32, 8) if large else (4, 2) if settings.quick else (8, 4)
    found = measure_phases(model, tokenizer, edits, batch, STEPS if large else None)
    row |= {"figures": found}
    if large:
        row["targets"] = [
            {"what": f"ms per edit of {STEPS} steps, {name}", "value": found[name]["ms_per_edit"], "most": most}
            for name, most in GPU_TARGETS.items()
        ]
    yield row


def summary(figures: dict[str, Any]) -> str:
    """One line: milliseconds per edit, and the phases' shares in batches."""
    parts = (f"{way} {figures[way]['ms_per_edit']:.0f} ms per edit" for way in ("sequential", "batched"))
    shares = figures["batched"]["shares"].items()
    return ", ".join(parts) + ": " + ", ".join(f"{phase} {share:.0%}" for phase, share in shares)


def counted(edits: int, issued: dict[str, int], tokens: int = 5 * 45) -> tuple[Work, ...]:
    """An edit of STEPS steps on LLaMA-3-8B's shape, in batches of so many; `issued`: torch's calls, by issued.py.

    The slab of 4,096 x 4,096 is in float32, 67 MB, whose products take 15 times as long as those of 16 bits, by what
    the run says of the card. 28 blocks of 218 million numbers below, 4 above and a head of 525, which sees the 45
    tokens or so that are asked for; of `tokens` in all, 5 rows of some 45.
    Passes of a step over the slab: 1 by the residual, 4 by the slope and its clip, 8 by Adam, 2 by the damping's
    product and its casts, 5 by the change and the rows.
    """
    slab, square, asked, float32 = 4 * 4096.0 * 4096, 4096.0 * 4096, 45, 771 / 51.5
    third = 2 * 4096.0**3 / 6  # of a Cholesky factor; twice as many invert it by halves, six times as many square it
    below, above, head = 28 * 218e6, 4 * 218e6, 525e6
    # forward and backward of each step, what the unedited model says, and the losses of the rows as they are at the end
    passes = 2 * STEPS + 2
    tail = Work(
        trips=0,
        streamed=passes * 2 * (above + head) / edits,
        operations=passes * 2 * (above * tokens + head * asked),
        issued=issued["tail"],
    )
    return (
        Work(trips=0, streamed=2 * below / edits, operations=2 * below * tokens, issued=issued["trunk"]),
        Work(trips=0, streamed=8 * slab, operations=third * (3 * float32 + 6), issued=issued["damping"]),
        tail,
        Work(trips=0, streamed=STEPS * 20 * slab, issued=issued["optimizer"]),
        Work(trips=0, operations=STEPS * square * (2 * 4096 + 4 * tokens * float32)),
        Work(trips=0, issued=issued["rest"]),
    )


_AS_MEASURED = (
    "of 5 rows of 45 tokens (4 of 112, as the benchmark's tokenizer of single bytes makes: {} ms by the model); an "
    "H200's machine took {} ms: shapes of rows that are new load kernels for tens of ms, which is not counted"
)
PLANNED = [
    Row(
        "edit_phases",
        f"LLaMA-3-8B's shape, bfloat16, {way}",
        counted(edits, issued),
        1e3 * GPU_TARGETS[way],
        _AS_MEASURED.format(longer, measured),
    )
    for way, edits, longer, measured, issued in (
        ("sequential", 1, 59, 361, {"trunk": 1474, "damping": 21, "tail": 4332, "optimizer": 113, "rest": 541}),
        ("batched", 8, 41, 123, {"trunk": 188, "damping": 21, "tail": 541, "optimizer": 123, "rest": 480}),
    )
]


BENCHMARK = Benchmark(
    "edit_phases",
    ("memoir_fast/editing/*.py", "memoir_fast/hf/*.py"),
    rows=rows,
    most_seconds=75.0,
    predicted=Predicted(planned=PLANNED),
    gist=summary,
)


def main() -> None:
    """Prints the figures, and writes them where --json says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--edits", type=int, default=32, help="facts taught, half of them with clocks (default: 32)")
    parser.add_argument("--batch", type=int, default=8, help="edits learned together (default: 8)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads on the CPU (default: 1)")
    parser.add_argument("--gpu", action="store_true", help="LLaMA-3-8B's shape on the GPU")
    asked = parser.parse_args()
    if asked.edits % (2 * asked.batch) or asked.edits + asked.batch > len(facts()):
        parser.error(f"edits must be a multiple of twice the batch, and with it at most {len(facts())}")
    torch.set_num_threads(asked.threads)
    model, tokenizer = llama_8b() if asked.gpu else load_model("smollm2", "bfloat16", "cpu")
    model.requires_grad_(False)
    found = measure_phases(model, tokenizer, asked.edits, asked.batch, STEPS if asked.gpu else None)
    told(found, asked.json)
    for name in ("sequential", "batched"):
        print(f"{name}: {found[name]['ms_per_edit']:.0f} ms per edit", file=sys.stderr)


if __name__ == "__main__":
    main()
