"""`route_rows`: from the edits that a batch's sequences follow to the rows of memory that they read."""

from collections.abc import Callable, Iterator
from functools import partial

import bench_mask_columns
import torch
from benchmark import Benchmark, Call, Predicted
from cases import Case, Peer, Prepared, Settings, require_equal
from predict import Row, Work
from shapes import LLAMA, SMOLLM, Layer, Token, masks, meta

from memoir_fast import ops
from memoir_fast.reference import route_rows as reference

SOURCES = (*bench_mask_columns.SOURCES, "kernels/*route_rows*.py", "memoir_fast/reference/route_rows.py")
STORED = 1_000


def make(layer: Layer, rows: int, settings: Settings) -> Prepared:
    """Random masks of about k bits, on four pages; every route another edit's."""
    mask = masks(STORED, layer, settings.device)
    page = torch.arange(STORED, dtype=torch.int32, device=settings.device) % 4

    def draw() -> tuple:
        return mask, page, torch.randperm(STORED, device=settings.device)[:rows].int(), layer.k, layer.width

    def check(inputs: tuple, result: tuple) -> None:
        for name, one, other in zip(("rows", "first"), result, reference.route_rows(*inputs), strict=True):
            require_equal(one, other, f"route_rows, {name}")

    return Prepared(
        run=ops.route_rows,
        draw=draw,
        check=check,
        bytes=4 * rows * (layer.words + layer.k + 1),
        peers={"torch, unpacked": Peer(reference.route_rows)},
    )


def cases(settings: Settings) -> Iterator[Case]:
    """One route, and a batch of them."""
    wanted = [(LLAMA, 1), (LLAMA, 64), (SMOLLM, 1)]
    for layer, rows in [(SMOLLM, 1)] if settings.quick else wanted:
        yield Case("route_rows", _name(rows, layer), layer.sizes | {"B": rows}, partial(make, layer, rows))


def issue(token: Token) -> dict[str, Callable[[], object]]:
    """Its call for one token."""
    page = torch.zeros_like(token.min_overlap)
    return {"route_rows": lambda: ops.route_rows(token.store, page, token.route, token.layer.k, token.layer.width)}


def calls(layer: Layer, dtype: torch.dtype) -> list[Call]:
    """One route."""
    from memoir_fast.kernels import route_rows  # needs triton, which is not everywhere

    given = meta(STORED, layer.words), meta(STORED), meta(1)
    bytes_moved = 4 * (layer.words + layer.k)
    return [Call("route_rows", lambda: route_rows.route_rows(*given, layer.k, layer.width), bytes_moved)]


def _name(rows: int, layer: Layer = LLAMA) -> str:
    return f"{rows} route{'s' if rows > 1 else ''}, D={layer.width}, k={layer.k}"


def counted_now(rows: int) -> tuple[Work, ...]:
    """The kernel that lists columns, csrc/mask_columns_kernel.cuh, which waits for the route before it asks for the
    mask and the page; of one warp, a turn for every 32 routes before its own."""
    (columns,) = bench_mask_columns.counted_now(rows)
    return (Work(**{**vars(columns), "trips": 2}),)


PLANNED = [Row("route_rows", _name(rows), counted_now(rows)) for rows in (1, 64)]
BENCHMARK = Benchmark("route_rows", SOURCES, cases, calls=calls, predicted=Predicted(planned=PLANNED))
