"""What the engine has to reach, and whether a result file says that it does.

    python bench/targets.py RESULT.json [--strict]

A target that the file has no figure for is "not measured". --strict exits with 1 where one that was measured is missed.
GPU times are a graph's replays over inputs that are not in the cache. CPU ratios are those of calls in a row: cold, a
call from Python costs more than these ops do.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

Figure = Callable[[dict[str, Any]], float | None]
"""A row's figure; KeyError where the row lacks it."""


class Target(NamedTuple):
    """A bound on a figure of one row."""

    bench: str
    case: str
    what: str
    figure: Figure
    bound: float
    at_least: bool = True


class Verdict(NamedTuple):
    """A target beside what was measured."""

    what: str
    value: float | None
    bound: float
    at_least: bool

    @property
    def word(self) -> str:
        """`reached`, `MISSED` or `not measured`."""
        if self.value is None:
            return "not measured"
        return "reached" if (self.value >= self.bound if self.at_least else self.value <= self.bound) else "MISSED"

    def __str__(self) -> str:
        shown = "" if self.value is None else f" {self.value:.3g}"
        return f"{self.word:12} {self.what}:{shown} (wanted {'>=' if self.at_least else '<='} {self.bound:.3g})"


def microseconds(row: dict[str, Any]) -> float:
    """The headline's median."""
    return row["seconds"][row["headline"]]["p50"] * 1e6


def share(mode: str | None = None) -> Figure:
    """The share of the ceiling, in a mode or in the headline's."""
    return lambda row: row["ceilings"][mode]["share"] if mode else row["share_of_ceiling"]


def times(peer: str, mode: str | None = None) -> Callable[[dict[str, Any]], float]:
    """How many times longer a peer takes."""

    def figure(row: dict[str, Any]) -> float:
        ratios = row["peers"][peer]["ratios"]
        return ratios[mode if mode in ratios else row["headline"]]  # slow peers are timed cold only

    return figure


def over(peer: str, mode: str | None = None, part: float = 1.0) -> Figure:
    """The op's time over `part` of a peer's."""
    return lambda row: 1 / times(peer, mode)(row) / part


def _match(queries: int, stored: int) -> str:
    return f"{queries} quer{'ies' if queries > 1 else 'y'}, N={stored:,}, D=14336"


_FAISS, _PACKING, _DENSE = "FAISS IndexBinaryFlat", "torch.topk and packing", "dense product"
_SUM = "plain sum of the store"
_TOPK = "FlashInfer top_k alone"
_ONE_FEATURE = "1 row, D=14336, k=4096"
_TOKEN = "1 x 1 token, D=14336, {}"
_TOKENS = {"1 x 1 token": 15, "4 x 1 token": 17, "1 x 64 tokens": 26, "1 x 2048 tokens": 125}  # us

CPU = (
    Target("mask_match", _match(1, 100_000), "times the speed of a plain sum of the store", times(_SUM, "hot"), 0.9),
    Target("mask_match", _match(1, 100_000), "times FAISS's speed", times(_FAISS, "hot"), 1.2),
    Target("mask_match", _match(1, 7_000), "times FAISS's speed", times(_FAISS, "hot"), 1.1),
    Target("mask_match", _match(16, 100_000), "times FAISS's speed", times(_FAISS, "hot"), 2.0),
    Target("tophash", _ONE_FEATURE, "times the speed of torch.topk and packing", times(_PACKING, "hot"), 1.0),
    *(
        Target(
            "masked_linear",
            _TOKEN.format(dtype),
            "time over k/D of the dense product",
            over(_DENSE, "hot", 4096 / 14336),
            1.3,
            False,
        )
        for dtype in ("float32", "bfloat16", "float16")
    ),
)
_LAYER = "D=14336, N=7,000, {}"
GPU = (
    *(
        Target("tophash", f"{rows} row{'s' if rows > 1 else ''}, D=14336, k=4096", "us", microseconds, most, False)
        for rows, most in ((1, 5.5), (64, 10), (8192, 320))
    ),
    *(
        Target(
            "tophash",
            f"{rows} row{'s' if rows > 1 else ''}, D=14336, k=4096",
            "times FlashInfer's top-k alone",
            times(_TOPK),
            least,
        )
        for rows, least in ((1, 3), (64, 2), (8192, 4))
    ),
    Target("tophash", _ONE_FEATURE, "times the speed of torch.topk and packing", times(_PACKING), 15),
    Target("mask_match", _match(1, 7_000), "us, alone", microseconds, 7, False),
    Target("mask_match", _match(1, 7_000), "times the speed of torch.compile", times("torch.compile"), 1),
    Target("mask_match", _match(1, 100_000), "share of the copy bandwidth", share(), 0.92),
    Target("mask_match", _match(1, 1_000_000), "share of the copy bandwidth", share(), 0.95),
    Target("mask_match", _match(2048, 7_000), "us", microseconds, 70, False),
    *(
        Target("masked_linear", f"{case}, D=14336, bfloat16", "us", microseconds, most, False)
        for case, most in _TOKENS.items()
    ),
    *(
        Target("masked_linear", f"{case}, D=14336, bfloat16", "times the dense product's speed", times(_DENSE), least)
        for case, least in zip(_TOKENS, (3, 2.6, 1.8, 2.4), strict=True)
    ),
    *(
        Target("layer", f"{case}, {_LAYER.format(kind)}", "time over the base layer's", over("base layer"), most, False)
        for case, kind, most in (
            ("decode, 1 x 1 token", "matched", 1.35),
            ("prefill, 1 x 64 tokens", "unmatched", 1.35),
            ("prefill, 1 x 64 tokens", "matched", 1.8),
            ("prefill, 1 x 2048 tokens", "unmatched", 1.08),
            ("prefill, 1 x 2048 tokens", "matched", 1.45),
        )
    ),
)


def verdicts(figures: dict[str, Any]) -> list[Verdict]:
    """Every target of the file's device, and those that rows bring along."""
    rows = {(row["bench"], row["case"]): row for row in figures["rows"]}
    found = []
    for target in CPU if figures["machine"]["device"] == "cpu" else GPU:
        row = rows.get((target.bench, target.case), {})
        try:
            value = target.figure(row)
        except KeyError:
            value = None
        found.append(Verdict(f"{target.bench}, {target.case}: {target.what}", value, target.bound, target.at_least))
    for row in figures["rows"]:
        found += [
            Verdict(f"{row['bench']}, {row['case']}: {target['what']}", target["value"], bound, "least" in target)
            for target in row.get("targets", ())
            for bound in (target["least"] if "least" in target else target["most"],)
        ]
    return found


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("result", type=Path)
    parser.add_argument("--strict", action="store_true")
    asked = parser.parse_args(arguments)
    found = verdicts(json.loads(asked.result.read_text(encoding="utf-8")))
    print("\n".join(map(str, found)))
    return int(asked.strict and any(verdict.word == "MISSED" for verdict in found))


if __name__ == "__main__":
    raise SystemExit(main())
