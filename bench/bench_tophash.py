"""`tophash`: from a feature to a packed mask and its columns."""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import torch
from benchmark import Benchmark, Call, Predicted, Roofline, Target
from cases import (
    ON_CPU_ONLY,
    SLOW,
    Absent,
    Case,
    Peer,
    Prepared,
    Settings,
    Wrong,
    compiled,
    most_rows,
    require_equal,
    some_rows,
)
from figure import microseconds, times
from flashinfer_topk import topk
from predict import CLEAR, FEW_SMS, H200, SMS, Row, Seen, Work
from shapes import DISTINCT, LLAMA, SMOLLM, Layer, Token, meta

from memoir_fast import backends, checks, ops
from memoir_fast.reference import tophash as reference

if TYPE_CHECKING:
    from machine_code import Launch

SOURCES = ("kernels/*tophash*.py", "csrc/tophash*", "csrc/hash*", "csrc/block_sums*")
ROUNDS = 7  # of the search: means of 5.3 to 7.5 over six kinds of rows at k / D = 0.286
_MOST_FEATURES = 1024  # on the CPU: the other peers' time per feature does not change further on


def published(feature: torch.Tensor, k: int, permutation: torch.Tensor) -> torch.Tensor:
    """Top-k, then a bool mask scattered and permuted; nothing is packed. Returns bool [B, D]."""
    chosen = feature.abs().topk(k, dim=1).indices
    mask = torch.zeros_like(feature, dtype=torch.bool).scatter_(1, chosen, True)
    permuted = torch.empty_like(mask)
    permuted[:, permutation.long()] = mask
    return permuted


def topk_and_pack(feature: torch.Tensor, k: int, permutation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Top-k without order, scatter, pack, columns from the sorted choice."""
    chosen = permutation[feature.abs().topk(k, dim=1, sorted=False).indices]
    bits = torch.zeros(feature.shape, dtype=torch.bool, device=feature.device).scatter_(1, chosen.long(), True)
    return reference.pack(bits), chosen.sort(dim=1).values


def by_numpy(feature: torch.Tensor, k: int, permutation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """argpartition and packbits."""
    magnitude, order = np.abs(feature.numpy()), permutation.numpy()
    rows, width = magnitude.shape
    chosen = order[np.argpartition(magnitude, width - k, axis=1)[:, width - k :]]
    bits = np.zeros((rows, -(-width // 128) * 128), dtype=bool)
    np.put_along_axis(bits, chosen, True, axis=1)
    packed = np.packbits(bits, axis=1, bitorder="little").view(np.int32)
    return torch.from_numpy(packed), torch.from_numpy(np.sort(chosen, axis=1))


def flashinfer() -> Peer | Absent:
    """FlashInfer's top-k, built from its headers; selects only, without mask, packing or columns in order."""
    try:
        select = topk()
    except (LookupError, OSError, RuntimeError) as error:
        return Absent(str(error))
    return Peer(lambda feature, k, permutation: select(feature.abs(), k), same=False)


def make(layer: Layer, rows: int, settings: Settings) -> Prepared:
    """Normal features."""
    device = settings.device
    permutation = torch.randperm(layer.width).int().to(device)

    def draw() -> tuple:
        return torch.randn((rows, layer.width), device=device), layer.k, permutation

    def check(inputs: tuple, result: Any) -> None:
        chosen = some_rows(rows, most_rows(device), device)
        expected = reference.tophash(inputs[0][chosen], *inputs[1:])
        if isinstance(result, torch.Tensor):  # the published way's bool mask
            return require_equal(reference.pack(result[chosen]), expected[0], "tophash, mask")
        if len(result) != 2:
            raise Wrong(f"tophash must return mask and columns, got {len(result)} values")
        for name, got, wanted in zip(("mask", "columns"), result, expected, strict=True):
            if len(got) != rows:
                raise Wrong(f"tophash, {name}: {len(got)} rows for {rows} features")
            require_equal(got[chosen], wanted, f"tophash, {name}")

    return Prepared(
        run=partial(ops.tophash, check=False),
        draw=draw,
        check=check,
        bytes=4 * rows * layer.width + 4 * layer.width + 4 * rows * (layer.words + layer.k),
        ceiling="copy",
        peers=_peers(layer, rows, settings),
    )


def _peers(layer: Layer, rows: int, settings: Settings) -> dict[str, Peer | Absent]:
    on_cpu = settings.device == "cpu"
    if on_cpu and rows > _MOST_FEATURES:
        return {"torch.topk and packing": SLOW}
    found: dict[str, Peer | Absent] = {
        "torch eager, published": Peer(published),
        "torch.topk and packing": Peer(topk_and_pack),
        "torch.topk alone": Peer(lambda feature, k, _: feature.abs().topk(k, dim=1, sorted=False), same=False),
        "torch.compile": compiled(topk_and_pack, settings)
        if layer == LLAMA
        else Absent(f"compiled for {LLAMA.model} only"),
        "numpy": Peer(by_numpy) if on_cpu else ON_CPU_ONLY,
    }
    if not on_cpu:
        found["FlashInfer top_k alone"] = flashinfer()
    return found


def cases(settings: Settings) -> Iterator[Case]:
    """One feature of every known layer, and many rows at once."""
    wanted = [(layer, 1) for layer in DISTINCT] + [(LLAMA, 64), (LLAMA, 8192)]
    if settings.device == "cuda":
        wanted = [(LLAMA, 1), (LLAMA, 64), (LLAMA, 8192), (SMOLLM, 1)]
    for layer, rows in [(SMOLLM, 1)] if settings.quick else wanted:
        yield Case("tophash", _name(rows, layer), layer.sizes | {"B": rows}, partial(make, layer, rows))


def _name(rows: int, layer: Layer = LLAMA) -> str:
    return f"{rows} row{'s' * (rows > 1)}, D={layer.width}, k={layer.k}"


def growing() -> Iterator[Case]:
    """Widths, two sevenths of them chosen."""
    for width in (1536, 4096, 8192, 14336, 28672):
        layer = Layer("-", width, 4096, width * 2 // 7)
        yield Case("tophash", f"D={width}", layer.sizes, partial(make, layer, 1))


def issue(token: Token) -> dict[str, Callable[[], object]]:
    """Its call for one token."""
    k = token.layer.k
    return {"tophash": lambda: ops.tophash(token.feature, k, token.permutation, check=False)}


def calls(layer: Layer, dtype: torch.dtype) -> list[Call]:
    """One row, and many."""
    from memoir_fast.kernels import tophash  # needs triton, which is not everywhere

    permutation = meta(layer.width)

    def call(rows: int) -> Call:
        feature = meta(rows, layer.width, dtype=torch.float32)
        moved = rows * 4 * (layer.width + layer.words + layer.k) + 4 * layer.width
        run = partial(tophash.tophash, feature, layer.k, permutation)
        return Call(f"tophash, {rows} rows", run, moved, bounds=_instructions)

    return [call(1), call(8192)]


def _instructions(launches: "Sequence[Launch]") -> dict[str, float]:
    """Issue time on the busiest SM: 4 a clock; every instruction once, the search loop once per round."""
    import machine_code  # needs triton

    launch = launches[-1]
    code = machine_code.compile_for(launch.kernel, 90)
    warps = dict(launch.kernel.options)["num_warps"]
    instructions = sum(code.instructions.values()) + (ROUNDS - 1) * code.loop("BAR")
    rows_of_one_sm = -(-launch.grid[0] // H200.sms)
    return {"instructions": rows_of_one_sm * instructions * warps / 4 / H200.clock}


def counted(rows: int) -> tuple[Work, ...]:
    """Its kernels at bf69bd7: 8 warps with up to 255 registers, so that an SM holds one row at a time.

    Slots: about 2,920 instructions a warp, of which the 212 of the search are issued in 7 rounds.
    """
    turns = -(-rows // SMS)
    select = Work(
        trips=3 * turns,
        streamed=rows * 75_520.0,
        slots=turns * 8 * (2920 + 6 * 212),
        busy=min(1.0, FEW_SMS * rows / SMS),
        alone=True,
    )
    return (select,) if rows == 1 else (CLEAR, select)


def counted_now(rows: int, serial: bool = False) -> tuple[Work, ...]:
    """The CUDA kernel, csrc/tophash_kernel.cuh: 16 warps a row; a thread has 7 times 4 of 14,336 values.

    Trips: the machine code for sm_90 asks for the 7 loads of the feature together, and later for the permutation's 7
    (`serial`: for each of these after the one before, as it was), which are in the second-level cache where the
    call before read them.
    Slots of a warp, read off the same code: 340 to the search, 120 in each of its 4.4 rounds (their mean over rows
    of normal numbers), 190 where few are left, 465 for the permutation, 110 for the count of bits, 610 for
    mask and columns. The kernel after one of at most 8 rows starts early.
    """
    of_row = 360 + 210 + 7 * 70 if serial else 340 + 190 + 465
    slots = 16 * (of_row + 120 * 4.4 + 110 + 610)
    return (
        Work(
            trips=14 if serial else 2,
            streamed=rows * 75_520.0,
            cached=rows * 57_344.0,
            slots=-(-rows // SMS) * slots,
            busy=min(1.0, FEW_SMS * rows / SMS),
            early=rows <= 8,
        ),
    )


def paper() -> list[str]:
    """What the op's face adds to a launcher on the host, and what the launcher itself does before Triton's launch.

    On CPU tensors: the launcher with Triton's launch left out; the op's face with a stand-in for the launcher that
    returns at once.
    """
    from memoir_fast.kernels import tophash
    from triton.runtime.jit import JITFunction

    width, k = 14336, 4096
    feature, permutation = torch.randn(1, width), torch.randperm(width).int()
    outputs = torch.empty((1, 448), dtype=torch.int32), torch.empty((1, k), dtype=torch.int32)
    stand_in = backends.Implementation(lambda *_: outputs, lambda *_: None)
    registered = torch.ops.memoir_fast.tophash.default
    with (
        mock.patch.object(backends, "load", lambda *_: stand_in),
        mock.patch.object(checks, "index_range", lambda *_: None),  # reads values on the CPU only
        mock.patch.object(JITFunction, "run", lambda *_, **__: None),
    ):
        direct, dispatched, public, launcher = _microseconds(
            lambda: stand_in.run(feature, k, permutation),
            lambda: registered(feature, k, permutation),
            lambda: ops.tophash(feature, k, permutation, check=False),
            lambda: tophash.tophash(feature, k, permutation),
        )
    rows = [
        "| host cost of one call | us |",
        "| --- | --- |",
        f"| registered op over a direct call: dispatch, checks, choice of backend | {dispatched - direct:.1f} |",
        f"| public function over a direct call | {public - direct:.1f} |",
        f"| launcher, outputs allocated, Triton's own launch left out | {launcher:.1f} |",
    ]
    return [
        "## tophash: instructions, and the host",
        f"Instructions are predicted with {ROUNDS} search rounds, everything else once, though ties and rows that are "
        "not finite are rare. What the host takes was measured where this page was written.",
        "\n".join(rows),
    ]


def _microseconds(*functions: Callable[[], object], calls_each: int = 300, rounds: int = 9) -> list[float]:
    """Shortest mean time of one call of each function, measured in turns: other load only ever adds."""
    taken: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds):
        for function, collected in zip(functions, taken, strict=True):
            start = time.perf_counter()
            for _ in range(calls_each):
                function()
            collected.append((time.perf_counter() - start) / calls_each * 1e6)
    return [min(collected) for collected in taken]


def _seen(rows: int) -> Seen:
    """The form of 512 threads that does not hold the permutation."""
    pattern = rf"512x7 right: 1: .*?{rows}: ([\d.]+)" if rows > 1 else r"512x7 right: 1: ([\d.]+)"
    return Seen(pattern, "loads are asked for together", counted_now(rows, serial=True))


_WITHOUT_PACKAGE = (
    "the run's FlashInfer had its Python package around it; called without, it took {} times as long as this on an H200"
)
_PACKING, _TOPK = "torch.topk and packing", "FlashInfer top_k alone"
BENCHMARK = Benchmark(
    "tophash",
    SOURCES,
    cases,
    listed=(
        ("tophash, 1 feature", "1 row, D=14336, k=4096"),
        ("tophash, 8,192 features", "8192 rows, D=14336, k=4096"),
    ),
    headlines=(("one prompt's hash", "tophash, 1 feature"),),
    cpu_targets=(Target(_name(1), "times the speed of torch.topk and packing", times(_PACKING, "hot"), 1.0),),
    gpu_targets=(
        *(Target(_name(rows), "us", microseconds, most, False) for rows, most in ((1, 5.5), (64, 10), (8192, 320))),
        *(
            Target(_name(rows), "times FlashInfer's top-k alone", times(_TOPK), least)
            for rows, least in ((1, 3), (64, 2), (8192, 4))
        ),
        Target(_name(1), "times the speed of torch.topk and packing", times(_PACKING), 15),
    ),
    calls=calls,
    predicted=Predicted(
        fitted=[Row("tophash", _name(rows), counted(rows)) for rows in (1, 8192)],
        shown=[Row("tophash", _name(64), counted(64), note="three times one row's: not explained")],
        planned=[
            Row("tophash", _name(rows), counted_now(rows), note=_WITHOUT_PACKAGE.format(ratio), seen=_seen(rows))
            for rows, ratio in ((1, 1.05), (64, 1.25), (8192, 2.84))
        ],
    ),
    paper=paper,
    roofline=Roofline("C1"),
)
