"""`mask_columns`: the columns of the masks that a batch's routes have found."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from benchmark import Benchmark, Call, Predicted
from cases import Case, Peer, Prepared, Settings, require_equal
from predict import FEW_SMS, SMS, Row, Seen, Work
from shapes import LLAMA, SMOLLM, Layer, Token, bits_of, masks, meta

from memoir_fast import ops
from memoir_fast.reference import mask_columns as reference

SOURCES = (
    "kernels/*mask_columns*.py",
    "kernels/_columns.py",
    "csrc/mask_columns*",
    "csrc/hash*",
    "csrc/block_sums*",
    "memoir_fast/reference/mask_columns.py",
)


def make(layer: Layer, rows: int, settings: Settings) -> Prepared:
    """Random masks of about k bits."""

    def draw() -> tuple:
        return masks(rows, layer, settings.device), layer.k

    def check(inputs: tuple, result: torch.Tensor) -> None:
        require_equal(result, reference.mask_columns(*inputs), "mask_columns")

    return Prepared(
        run=ops.mask_columns,
        draw=draw,
        check=check,
        bytes=4 * rows * (layer.words + layer.k),
        peers={
            "torch, unpacked": Peer(reference.mask_columns),
            "torch.nonzero alone": Peer(lambda mask, k: bits_of(mask, layer).nonzero(), same=False),
        },
    )


def cases(settings: Settings) -> Iterator[Case]:
    """One route, and a batch of them."""
    wanted = [(LLAMA, 1), (LLAMA, 64), (SMOLLM, 1)]
    for layer, rows in [(SMOLLM, 1)] if settings.quick else wanted:
        name = _name(rows, layer)
        yield Case("mask_columns", name, layer.sizes | {"B": rows}, partial(make, layer, rows))


def issue(token: Token) -> dict[str, Callable[[], object]]:
    """Its call for one token."""
    return {"mask_columns": lambda: ops.mask_columns(token.query, token.layer.k)}


def calls(layer: Layer, dtype: torch.dtype) -> list[Call]:
    """One route."""
    from memoir_fast.kernels import mask_columns  # needs triton, which is not everywhere

    mask = meta(1, layer.words)
    return [Call("mask_columns", lambda: mask_columns.mask_columns(mask, layer.k), 4 * (layer.words + layer.k))]


def _name(rows: int, layer: Layer = LLAMA) -> str:
    return f"{rows} row{'s' if rows > 1 else ''}, D={layer.width}, k={layer.k}"


def counted_now(rows: int) -> tuple[Work, ...]:
    """The CUDA kernel, csrc/mask_columns_kernel.cuh: a block of 16 warps a row, of which 14 have words.

    The mask is one trip. Slots, by the machine code for sm_90: 180 of a warp, and 13 for each bit of its fullest word,
    some 15 of 32.
    """
    slots, busy = -(-rows // SMS) * 16 * (180 + 13 * 15), min(1.0, FEW_SMS * rows / SMS)
    return (Work(trips=1, streamed=rows * (1792.0 + 16384), slots=slots, busy=busy, early=True),)


PLANNED = [
    Row(
        "mask_columns",
        _name(1),
        counted_now(1),
        note="each bit's store waits for the bit before: latency of instructions, which is not counted",
        seen=Seen(r"cuda mask_columns 1 row ([\d.]+)"),
    ),
    Row("mask_columns", _name(64), counted_now(64)),
]
BENCHMARK = Benchmark("mask_columns", SOURCES, cases, calls=calls, predicted=Predicted(planned=PLANNED))
