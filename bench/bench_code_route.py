"""`code_route`: from what a search found for a prompt's three routing codes to the edit that it follows."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from benchmark import Benchmark, Call, Predicted
from cases import Case, Peer, Prepared, Settings, require_equal
from predict import Row, Work
from shapes import Layer, Token, meta

from memoir_fast import ops
from memoir_fast.reference import code_route as reference

SOURCES = (
    "kernels/*code_route*.py",
    "csrc/code_route*",
    "csrc/hash*",
    "memoir_fast/reference/code_route.py",
)
STORED, CODES = 7_000, 3


def draw(prompts: int, device: str) -> tuple:
    """What was found for so many prompts: a code in seven thousand matches nothing."""
    row = torch.randint(-1, STORED, (prompts, CODES), dtype=torch.int32, device=device)
    overlap = torch.randint(0, 441, (prompts, CODES), dtype=torch.int32, device=device)
    owner = torch.arange(STORED, dtype=torch.int32, device=device)
    return row, overlap, owner, torch.randint(0, 441, (STORED,), dtype=torch.int32, device=device)


def make(prompts: int, settings: Settings) -> Prepared:
    """Random rows and overlaps."""

    def check(inputs: tuple, result: tuple) -> None:
        for name, one, other in zip(("route", "overlap"), result, reference.code_route(*inputs), strict=True):
            require_equal(one, other, f"code_route, {name}")

    return Prepared(
        run=ops.code_route,
        draw=lambda: draw(prompts, settings.device),
        check=check,
        bytes=8 * prompts * (CODES + 2),
        peers={"torch, one step after the other": Peer(reference.code_route)},
    )


def cases(settings: Settings) -> Iterator[Case]:
    """One prompt, and a batch of them."""
    for prompts in [1] if settings.quick else [1, 64]:
        yield Case("code_route", _name(prompts), {"B": prompts, "Q": CODES, "N": STORED}, partial(make, prompts))


def issue(token: Token) -> dict[str, Callable[[], object]]:
    """Its call for one prompt."""
    given = draw(1, token.x.device.type)
    return {"code_route": lambda: ops.code_route(*given)}


def calls(layer: Layer, dtype: torch.dtype) -> list[Call]:
    """One prompt."""
    from memoir_fast.kernels import code_route  # needs triton, which is not everywhere

    given = meta(1, CODES), meta(1, CODES), meta(STORED), meta(STORED)
    return [Call("code_route", lambda: code_route.code_route(*given), 8 * (CODES + 2))]


def _name(prompts: int) -> str:
    return f"{prompts} prompt{'s' if prompts > 1 else ''}, {CODES} codes each, N={STORED:,}"


def counted_now(prompts: int) -> tuple[Work, ...]:
    """csrc/code_route_kernel.cuh: a trip for all codes' rows and overlaps, one for the owner and room of the best."""
    return (Work(trips=2, streamed=8.0 * prompts * (CODES + 2)),)


PLANNED = [Row("code_route", _name(prompts), counted_now(prompts)) for prompts in (1, 64)]
BENCHMARK = Benchmark("code_route", SOURCES, cases, calls=calls, predicted=Predicted(planned=PLANNED))
