"""`masked_linear`: the residual memory's product over the matched edit's columns."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from benchmark import Benchmark, Call, Predicted, Roofline, Target
from cases import Absent, Case, Peer, Prepared, Settings, Wrong, compiled, most_rows, require_close, rotated, some_rows
from figure import floors, microseconds, over, own_seconds, plain, times
from predict import SMS, Row, Seen, Work
from shapes import (
    EDITS,
    LLAMA,
    SMOLLM,
    TOKENS_OF_CHUNK,
    TOKENS_OF_PREFILL,
    Layer,
    Token,
    columns,
    dtype_name,
    meta,
)

from memoir_fast import ops

SOURCES = ("kernels/*masked_linear*.py", "kernels/_pages.py", "csrc/masked_linear*", "csrc/matrix*", "csrc/row_sums*")


def gathered(x: torch.Tensor, memory: torch.Tensor, columns: torch.Tensor, route: torch.Tensor) -> torch.Tensor:
    """Gathers the edit's columns and multiplies, all sequences along the first's route."""
    active = columns[route[0]].long()
    return x[..., active] @ memory[active]


def dense(weight: torch.Tensor) -> Peer:
    """The product over all D columns: what an unmasked layer costs. Another function."""
    return Peer(lambda x, *_: F.linear(x, weight), same=False)


def published(weight: torch.Tensor, width: int) -> Peer:
    """The published way: the input times a bool mask, then the product over all D columns."""

    def run(x: torch.Tensor, memory: torch.Tensor, columns: torch.Tensor, route: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros(width, dtype=torch.bool, device=x.device).index_fill_(0, columns[route[0]].long(), True)
        return F.linear(x * mask, weight)

    return Peer(run)


def make(layer: Layer, batch: int, tokens: int, dtype: torch.dtype, settings: Settings) -> Prepared:
    """`batch` sequences of one route. The dense peers read a weight in the layout of nn.Linear."""
    device = settings.device
    memory = torch.randn((layer.width, layer.outputs), device=device).to(dtype)
    weight, route = memory.T.contiguous(), torch.zeros(batch, dtype=torch.int32, device=device)

    def draw() -> tuple:
        x = torch.randn((batch, tokens, layer.width), device=device).to(dtype)
        return x, rotated(memory), columns(1, layer, device), route

    def check(inputs: tuple, result: torch.Tensor) -> None:
        x, memory, owned, _ = inputs
        active, seen = owned[0].long(), some_rows(tokens, most_rows(device), device)
        if result.shape != (batch, tokens, layer.outputs):
            raise Wrong(f"masked_linear: the shape is {list(result.shape)}")
        require_close(result[:, seen], x[:, seen][..., active].double() @ memory[active].double(), "masked_linear")

    slab, rows = layer.k * layer.outputs, batch * tokens
    return Prepared(
        run=ops.masked_linear,
        draw=draw,
        check=check,
        bytes=dtype.itemsize * (slab + rows * (layer.k + layer.outputs)) + 4 * layer.k,
        operations=2 * rows * slab,
        ceiling="read",
        dtype=dtype,
        peers={
            "dense product": dense(weight),
            "torch eager, published": published(weight, layer.width),
            "gather and product": Peer(gathered),
            "torch.compile": compiled(gathered, settings)
            if dtype == torch.bfloat16 and tokens < 1024
            else Absent("compiled for bfloat16 and fewer than 1,024 tokens only"),
        },
    )


def cases(settings: Settings) -> Iterator[Case]:
    """Decoding, a batch, and prefill."""
    wanted = [(LLAMA, 1, 1, dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)]
    wanted += [(LLAMA, 4, 1, torch.bfloat16), (LLAMA, 1, 64, torch.bfloat16), (SMOLLM, 1, 1, torch.float32)]
    wanted += [(LLAMA, 1, 2048, torch.bfloat16)]
    wanted += [(LLAMA, 1, 64, torch.float32)] if settings.device == "cpu" else []
    for layer, batch, tokens, dtype in [(SMOLLM, 1, 1, torch.float32)] if settings.quick else wanted:
        name = _name(batch, tokens, dtype, layer)
        numbers = layer.sizes | {"B": batch, "S": tokens, "dtype": dtype_name(dtype)}
        yield Case("masked_linear", name, numbers, partial(make, layer, batch, tokens, dtype))


def _name(batch: int, tokens: int, dtype: torch.dtype = torch.bfloat16, layer: Layer = LLAMA) -> str:
    return f"{batch} x {tokens} token{'s' * (tokens > 1)}, D={layer.width}, {dtype_name(dtype)}"


def growing() -> Iterator[Case]:
    """Numbers of active columns, and lengths of a prompt that `cases` has not."""
    wanted = [(f"k={k}", replace(LLAMA, k=k), 1) for k in (512, 1024, 2048, 4096, 8192)]
    wanted += [(f"S={tokens}", LLAMA, tokens) for tokens in (4, 16)]
    for name, layer, tokens in wanted:
        numbers = layer.sizes | {"S": tokens, "dtype": "bfloat16"}
        yield Case("masked_linear", name, numbers, partial(make, layer, 1, tokens, torch.bfloat16))


def growth_step(numbers: dict[str, Any]) -> str | None:
    """Lengths of a prompt at the large layer."""
    of_one_sequence = (numbers.get("D"), numbers["B"], numbers["dtype"]) == (LLAMA.width, 1, "bfloat16")
    return f"S={numbers['S']}" if of_one_sequence else None


def issue(token: Token) -> dict[str, Callable[[], object]]:
    """Its call for one token, alone and added to the base layer's output in place."""
    memory = token.x, token.memory, token.columns, token.route
    return {
        "masked_linear": lambda: ops.masked_linear(*memory),
        "masked_linear_add_": lambda: ops.masked_linear_add_(token.base, *memory),
    }


def calls(layer: Layer, dtype: torch.dtype) -> list[Call]:
    """A decode step, a batch of them, a chunk of a prompt and a prefill, added to the base layer's output."""
    from memoir_fast.kernels import masked_linear  # needs triton, which is not everywhere

    memory, own = meta(layer.width, layer.outputs, dtype=dtype), meta(EDITS, layer.k)
    slab = layer.k * layer.outputs

    def call(name: str, batch: int, tokens: int) -> Call:
        x, base = meta(batch, tokens, layer.width, dtype=dtype), meta(batch, tokens, layer.outputs, dtype=dtype)
        moved = dtype.itemsize * (slab + batch * tokens * (layer.k + 2 * layer.outputs)) + 4 * layer.k
        run = partial(masked_linear.masked_linear_add_, base, x, memory, own, meta(batch))
        return Call(f"masked_linear, {name}", run, moved, 2 * batch * tokens * slab)

    return [
        call("1 token", 1, 1),
        call("4 sequences of one route", 4, 1),
        call(f"{TOKENS_OF_CHUNK} tokens", 1, TOKENS_OF_CHUNK),
        call(f"{TOKENS_OF_PREFILL} tokens", 1, TOKENS_OF_PREFILL),
    ]


# Its kernels at bf69bd7, counted at D=14336, O=k=4096; elements of the active rows and of the whole weight.
SLAB, DENSE = 4096 * 4096.0, 14336 * 4096.0
FEW = (Work(trips=3), Work(trips=2, gathered=2 * SLAB), Work())  # of 2 to 16 rows: gather, rows, combine
FUSED = (Work(trips=64 * 3, gathered=2 * SLAB, busy=64 / 132),)  # of 64 tokens: 64 blocks, each 64 steps of three trips
PREFILL = (Work(trips=3, gathered=2048 * 8192.0 * 2), Work(trips=3, gathered=2 * SLAB, operations=2 * 2048 * SLAB))


def counted_of_one(size: int) -> tuple[Work, ...]:
    """One token, `size` bytes a number: route, columns, rows."""
    return (Work(trips=3, gathered=size * SLAB),)


def counted_dense(rows: int, size: int = 2) -> tuple[Work, ...]:
    """torch's product with the whole weight."""
    return (Work(streamed=size * (DENSE + rows * (14336 + 4096.0)), operations=2 * rows * DENSE),)


# Its kernels as they are, in csrc/masked_linear*.cuh and kernels/_masked_linear_packed.py, at the same sizes.


def counted_streamed(size: int) -> tuple[Work, ...]:
    """One token, `size` bytes a number: 16 clusters of 8 blocks.

    Trips: route; columns, and the page with them; rows, and inputs with them; the sums of the cluster's other blocks.
    The machine code for sm_90 asks for each of these together.
    """
    return (Work(trips=4, gathered=size * SLAB, early=True),)


def counted_tiles(batch: int, tokens: int) -> tuple[Work, ...]:
    """3 to 128 tokens of one route: inputs are packed, then 16 clusters of 8 blocks walk 16 steps of 32 rows each.

    Packing reads nearly every sector of the inputs. Its trips: the routes; a thread's 8 columns, and the page with
    them; its 8 inputs. The machine code for sm_90 asks for each of these together.
    The product starts early and has route, columns and the first 3 of its 16 steps' rows when packing ends. Its trips:
    packed inputs, and the cluster's sums, 1,024 of them a block and turn. Slots of a warp, by the same code: 600 before
    the loop, 191, 208 or 235 a step for tiles of 16, 32 or 64 rows, 200 to put the sums down, 400 for each turn of
    adding them up.
    """
    rows = batch * tokens
    tile, step = (16, 191) if rows <= 16 else (32, 208) if rows <= 32 else (64, 235)
    tiles, turns = -(-rows // tile), -(-min(rows, tile) // 32)
    pack = Work(trips=3, streamed=rows * 2.0 * (14336 + 4096))
    multiply = Work(
        trips=tiles * (1 + turns),
        gathered=tiles * 2 * SLAB * 13 / 16,
        cached=16 * rows * 2.0 * 4096,
        operations=2 * tiles * tile * SLAB,
        slots=tiles * 8 * (600 + 16 * step + 200 + 400 * turns),
        early=True,
    )
    return pack, multiply


def counted_packed() -> tuple[Work, ...]:
    """2,048 tokens, by Triton, as the launch table has it for this GPU: tiles of 128 x 256, of which an SM holds one.

    Trips: route, columns and page together, rows; of the product twice, since an SM takes 2 of 256 programs. As of
    torch's product, what tiles read again from the second-level cache is not counted.
    """
    pack = Work(trips=3, streamed=2048 * 2.0 * (14336 + 4096))
    operations = 2 * 2048 * SLAB * (2 * SMS) / 256
    return pack, Work(trips=6, gathered=2 * SLAB, operations=operations, alone=True)


NOTHING = (Work(), Work(early=True))  # of 3 to 128 tokens without a route: packing and product read it and end
_PAGES = "memory has pages, which move no count"


_WAITS = "an SM has one block of 8 warps, which wait for each other in every step: likely less overlaps than is counted"


def _planned(
    batch: int, tokens: int, kernels: tuple[Work, ...], seen: Seen, note: str = "", dtype: torch.dtype = torch.bfloat16
) -> Row:
    dense = counted_dense(batch * tokens, dtype.itemsize)
    name = _name(batch, tokens, dtype)
    return Row("masked_linear", name, kernels, note=note, peers=(("dense product", dense),), seen=seen)


PLANNED = [
    _planned(1, 1, counted_streamed(2), Seen(r"own/dense: 1: ([\d.]+)/", _PAGES, counted_streamed(2))),
    _planned(
        1,
        1,
        counted_streamed(4),
        Seen(r"float32 1 token: ([\d.]+)", _PAGES, counted_streamed(4)),
        dtype=torch.float32,
    ),
    _planned(
        4,
        1,
        counted_tiles(4, 1),
        Seen(r"4 tokens, tiles: base/8 ([\d.]+)", _PAGES, counted_tiles(1, 4)),
        "measured: 4 tokens of one sequence",
    ),
    _planned(
        1,
        64,
        counted_tiles(1, 64),
        Seen(r"own/dense: .* 64: ([\d.]+)/", _PAGES, counted_tiles(1, 64)),
        _WAITS,
    ),
    _planned(
        1,
        2048,
        counted_packed(),
        Seen(
            r"2048 shipped ([\d.]+)", "memory has pages, and packing alone takes 30 us in place of 47", counted_packed()
        ),
    ),
]

_SMALL = Row("masked_linear", _name(1, 1, torch.float32, SMOLLM), (Work(trips=3, gathered=440 * 576 * 4.0),))
PREDICTED = Predicted(
    fitted=[
        _SMALL,
        Row("masked_linear", _name(1, 1, torch.float32), counted_of_one(4)),
        Row("masked_linear", _name(1, 1, torch.bfloat16), counted_of_one(2)),
        Row("masked_linear", _name(1, 1, torch.float16), counted_of_one(2)),
        Row("masked_linear", _name(4, 1), FEW),
    ],
    shown=[
        Row("masked_linear", _name(1, 64), FUSED),
        Row("masked_linear", _name(1, 2048), PREFILL, note="the product waits for its gathers"),
    ],
    fitted_peers=[
        ("dense product", Row("masked_linear", _name(1, 1, torch.float32), counted_dense(1, 4))),
        *(("dense product", Row("masked_linear", _name(1, rows), counted_dense(rows))) for rows in (1, 64, 2048)),
    ],
    planned=PLANNED,
)


def against_tokens(_: dict[str, Any], grown: Sequence[dict[str, Any]], axes: Any) -> None:
    """Its time against the tokens of one sequence."""
    _draw(grown, axes, "S", "tokens S of one sequence")
    axes.set_title("masked_linear against tokens, D = 14336, O = k = 4096, bfloat16")


def against_columns(_: dict[str, Any], grown: Sequence[dict[str, Any]], axes: Any) -> None:
    """Its time against active columns."""
    _draw(grown, axes, "k", "active columns k")
    axes.set_title("masked_linear of one token, D = 14336, O = 4096, bfloat16")


def _draw(grown: Sequence[dict[str, Any]], axes: Any, key: str, words: str) -> None:
    rows = [row for row in grown if row["case"].startswith(f"masked_linear, {key}=") and "seconds" in row]
    rows.sort(key=lambda row: row["parameters"][key])
    numbers = [row["parameters"][key] for row in rows]
    if rows:
        axes.plot(numbers, [own_seconds(row) * 1e3 for row in rows], "o-", color="crimson", label="masked_linear")
        axes.plot(numbers, floors(rows), "k--", linewidth=1, label="its bytes or operations at the machine's rates")
        axes.legend(fontsize=7.5)
    axes.set(xscale="log", yscale="log", xlabel=words, ylabel="milliseconds")
    plain(axes, numbers)


_DENSE = "dense product"
BENCHMARK = Benchmark(
    "masked_linear",
    SOURCES,
    cases,
    listed=(
        ("masked_linear, 1 token, bf16", "1 x 1 token, D=14336, bfloat16"),
        ("masked_linear, 2,048 tokens, bf16", "1 x 2048 tokens, D=14336, bfloat16"),
    ),
    headlines=(("one token's product with an edit's columns", "masked_linear, 1 token, bf16"),),
    cpu_targets=tuple(
        Target(
            _name(1, 1, dtype),
            "time over k/D of the dense product",
            over(_DENSE, "hot", LLAMA.k / LLAMA.width),
            1.3,
            False,
        )
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
    ),
    gpu_targets=(
        *(
            Target(_name(batch, tokens), "us", microseconds, most, False)
            for batch, tokens, most in ((1, 1, 15), (4, 1, 17), (1, 64, 26), (1, 2048, 125))
        ),
        *(
            Target(_name(batch, tokens), "times the dense product's speed", times(_DENSE), least)
            for batch, tokens, least in ((1, 1, 3), (4, 1, 2.6), (1, 64, 1.8), (1, 2048, 2.4))
        ),
    ),
    limits=(_DENSE,),
    calls=calls,
    predicted=PREDICTED,
    growth_step=growth_step,
    roofline=Roofline("C4"),
    plots={"tokens": against_tokens, "columns": against_columns},
)
