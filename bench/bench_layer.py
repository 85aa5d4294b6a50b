"""An edited layer: the base layer alone, with a memory that nothing matches, and with a matched edit.

`decode` has the route given, as every decode step has; `prefill` decides it: mean, hash and search are in its time.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import bench_mask_match
import bench_masked_linear
import bench_prompt_feature
import bench_route_rows
import bench_tophash
import torch
from bench_mask_overlap import bool_bank
from bench_masked_linear import (
    FEW,
    FUSED,
    NOTHING,
    PREFILL,
    counted_dense,
    counted_of_one,
    counted_packed,
    counted_streamed,
    counted_tiles,
)
from benchmark import Benchmark, Predicted, Roofline, Target
from cases import SLOW, Absent, Case, Peer, Prepared, Settings, Wrong, most_rows, require_close, some_rows
from figure import over
from predict import Row, Seen, Work
from shapes import LLAMA, SMOLLM, TAU, Layer, Token, columns, dtype_name, mask_of, masks
from torch import nn

from memoir_fast.modules import MemoirLinear

SOURCES = (
    *bench_tophash.SOURCES,
    *bench_prompt_feature.SOURCES,
    *bench_mask_match.SOURCES,
    *bench_masked_linear.SOURCES,
    *bench_route_rows.SOURCES,
    "memoir_fast/modules/*.py",
)


def dtype_of(tokens: int, device: str) -> torch.dtype:
    """bfloat16 on a GPU; on a CPU float32, but for long prefills, which would take seconds each."""
    return torch.bfloat16 if device == "cuda" or tokens > 1024 else torch.float32


def edited_layer(layer: Layer, stored: int, dtype: torch.dtype, device: str) -> MemoirLinear:
    """A layer with `stored` random edits and a random memory."""
    base = nn.Linear(layer.width, layer.outputs, bias=False, device=device, dtype=dtype).requires_grad_(False)
    edited = MemoirLinear(base, k=layer.k, tau=TAU, max_edits=stored)
    edited.store.extend(masks(stored, layer, device))
    edited.store.masks[-1] = mask_of(columns(1, layer, device), layer)[0]
    edited.memory.weight.normal_().mul_(0.01)
    return edited


def make(layer: Layer, step: str, matched: bool, batch: int, tokens: int, stored: int, settings: Settings) -> Prepared:
    """A matched prefill stores the prompt's own mask last."""
    device, dtype = settings.device, dtype_of(tokens, settings.device)
    edited = edited_layer(layer, stored, dtype, device)
    x = torch.randn((batch, tokens, layer.width), device=device).to(dtype)
    owner = stored - 1
    if step == "decode":
        route = torch.full((batch,), owner if matched else -1, dtype=torch.int32, device=device)
        routed = edited.routed(route)
        edited.router = lambda _: routed
    elif matched:
        edited.store.masks[owner] = edited.hash(x[:1])[0][0]

    def check(inputs: tuple, result: torch.Tensor) -> None:
        (x,) = inputs
        if result.shape != (batch, tokens, layer.outputs):
            raise Wrong(f"layer: the shape is {list(result.shape)}")
        seen = some_rows(tokens, most_rows(device), device)
        base, x, result = edited.base(x)[:, seen], x[:, seen], result[:, seen]
        if not matched:
            if not torch.equal(result, base):
                raise Wrong("an unmatched sequence must get the base layer's output, bit for bit")
            return
        active = edited.store.columns[owner].long()
        expected = x.double() @ edited.base.weight.double().T
        expected += x[..., active].double() @ edited.memory.weight[active].double()
        require_close(result, expected, "layer")
        if torch.equal(result, base):
            raise Wrong("the matched edit changed nothing")

    rows, slab = batch * tokens, layer.k * layer.outputs
    dense = layer.width * layer.outputs
    found: dict[str, Peer | Absent] = {"base layer": Peer(edited.base, same=False)}
    found |= _published(edited, layer, step, tokens, matched)
    return Prepared(
        run=edited,
        draw=lambda: (x,),
        check=check,
        bytes=dtype.itemsize * (dense + slab * matched + rows * (layer.width + layer.outputs))
        + 4 * layer.words * stored * (step == "prefill"),
        operations=2 * rows * (dense + slab * matched),
        ceiling="read",
        dtype=dtype,
        op="masked_linear_add_",
        peers=found,
    )


def _published(edited: MemoirLinear, layer: Layer, step: str, tokens: int, matched: bool) -> dict[str, Peer | Absent]:
    """The published layer: a bool bank searched through float32, then two dense products, one of a masked input."""
    bank = bool_bank(edited.store.masks)
    if step == "decode":
        return {}
    if not isinstance(bank, torch.Tensor) or (tokens > 1024 and bank.device.type == "cpu"):
        return {"torch eager, published": bank if isinstance(bank, Absent) else SLOW}
    residual = edited.memory.weight.T.contiguous()

    def run(x: torch.Tensor) -> torch.Tensor:
        feature = x[0].float().mean(dim=0) - edited.mu
        chosen = edited.permutation[feature.abs().topk(layer.k).indices].long()
        mask = torch.zeros(bank.shape[1], device=x.device).index_fill_(0, chosen, 1.0)
        overlap = bank.float() @ mask
        best = overlap.max(dim=0)
        own = bank[best.indices] if best.values.item() / layer.k >= TAU else torch.zeros_like(bank[0])
        kept = own[: layer.width]
        return edited.base(x) + nn.functional.linear(x * kept, residual)

    return {"torch eager, published": Peer(run, same=matched)}


def cases(settings: Settings) -> Iterator[Case]:
    """One token, a small batch, a prefill; each unmatched and matched, but for prefills on a CPU, which take long."""
    wanted = [(LLAMA, "decode", 1, 1, 7_000), (LLAMA, "decode", 4, 1, 7_000), (LLAMA, "prefill", 1, 64, 7_000)]
    wanted += [(LLAMA, "prefill", 1, 2048, 7_000)]
    for layer, step, batch, tokens, stored in [(SMOLLM, "decode", 1, 1, 1_000)] if settings.quick else wanted:
        for matched in (True,) if tokens > 1 and settings.device == "cpu" else (False, True):
            name = _name(step, batch, tokens, matched, layer, stored)
            dtype = dtype_name(dtype_of(tokens, settings.device))
            numbers = {"step": step, "matched": matched, "B": batch, "S": tokens, "N": stored, "dtype": dtype}
            yield Case("layer", name, layer.sizes | numbers, partial(make, layer, step, matched, batch, tokens, stored))


def _name(step: str, batch: int, tokens: int, matched: bool, layer: Layer = LLAMA, stored: int = 7_000) -> str:
    sizes = f"{batch} x {tokens} token{'s' * (tokens > 1)}, D={layer.width}, N={stored:,}"
    return f"{step}, {sizes}, {'matched' if matched else 'unmatched'}"


def issue(token: Token) -> dict[str, Callable[[], object]]:
    """A call for one token of the base layer, and of the edited one with its route given."""
    layer, options = token.layer, {"dtype": token.x.dtype, "device": token.x.device}
    edited = MemoirLinear(nn.Linear(layer.width, layer.outputs, bias=False, **options), layer.k)
    edited.store.append(mask_of(token.columns[:1], layer)[0])
    routed = edited.routed(token.route)
    edited.router = lambda _: routed
    return {"base layer": lambda: edited.base(token.x), "layer, routed": lambda: edited(token.x)}


def late(kernels: tuple[Work, ...]) -> tuple[Work, ...]:
    """The same behind a kernel of torch's, which lets none start early."""
    return replace(kernels[0], early=False), *kernels[1:]


def counted_now(step: str, batch: int, tokens: int, memory: tuple[Work, ...]) -> tuple[Work, ...]:
    """The dense product; in a prefill the chain that decides.

    The search lets none start early; what lists the route's rows does, where the extension's kernels follow.
    """
    decided = (
        *late(bench_prompt_feature.counted_now(1, tokens)),
        *bench_tophash.counted_now(1),
        *_all_early(bench_mask_match.counted_now(1, 7_000)),
        *late(bench_route_rows.counted_now(1)),
    )
    if step == "decode":
        return (*counted_dense(batch * tokens), *late(memory))
    return (*counted_dense(batch * tokens), *decided, replace(memory[0], early=tokens <= 128), *memory[1:])


def _all_early(kernels: tuple[Work, ...]) -> tuple[Work, ...]:
    """Behind a hash of one row, which lets the search's first kernel start with it."""
    return tuple(replace(work, early=True) for work in kernels)


def _planned() -> list[Row]:
    since = "all kernels but the search's, and pages"

    def row(step: str, batch: int, tokens: int, matched: bool, memory: tuple[Work, ...]) -> Row:
        base = ("base layer", counted_dense(batch * tokens))
        kernels = counted_now(step, batch, tokens, memory)
        return Row("layer", _name(step, batch, tokens, matched), kernels, peers=(base,), seen=Seen(since=since))

    return [
        row("decode", 1, 1, False, (Work(),)),
        row("decode", 1, 1, True, counted_streamed(2)),
        row("decode", 4, 1, False, NOTHING),
        row("decode", 4, 1, True, counted_tiles(4, 1)),
        row("prefill", 1, 64, False, NOTHING),
        row("prefill", 1, 64, True, counted_tiles(1, 64)),
        row("prefill", 1, 2048, False, (Work(), Work())),
        row("prefill", 1, 2048, True, counted_packed()),
    ]


def _predicted() -> Predicted:
    """At bf69bd7: the dense product, the route where it is decided, and the memory's part."""

    def row(step: str, batch: int, tokens: int, matched: bool, memory: tuple[Work, ...]) -> Row:
        decided = (
            *bench_prompt_feature.counted(tokens),
            *bench_tophash.counted(1),
            *bench_mask_match.counted(7_000),
        )
        kernels = (*counted_dense(batch * tokens), *(decided if step == "prefill" else ()), *memory)
        return Row("layer", _name(step, batch, tokens, matched), kernels)

    return Predicted(
        fitted=[row("decode", 1, 1, False, (Work(),)), row("decode", 4, 1, False, (Work(),) * 3)],
        shown=[
            row("decode", 1, 1, True, counted_of_one(2)),
            row("decode", 4, 1, True, FEW),
            row("prefill", 1, 64, False, (Work(),)),
            row("prefill", 1, 64, True, FUSED),
            row("prefill", 1, 2048, False, (Work(),) * 2),
            row("prefill", 1, 2048, True, PREFILL),
        ],
        planned=_planned(),
    )


BENCHMARK = Benchmark(
    "layer",
    SOURCES,
    cases,
    listed=(
        ("layer, 1 token, matched", "decode, 1 x 1 token, D=14336, N=7,000, matched"),
        ("layer, 1 token, unmatched", "decode, 1 x 1 token, D=14336, N=7,000, unmatched"),
        ("layer, prefill of 2,048 tokens, matched", "prefill, 1 x 2048 tokens, D=14336, N=7,000, matched"),
    ),
    headlines=(
        ("the layer, one token, no edit followed", "layer, 1 token, unmatched"),
        ("the layer, one token, an edit followed", "layer, 1 token, matched"),
    ),
    gpu_targets=tuple(
        Target(_name(*case), "time over the base layer's", over("base layer"), most, False)
        for case, most in (
            (("decode", 1, 1, True), 1.35),
            (("prefill", 1, 64, False), 1.35),
            (("prefill", 1, 64, True), 1.8),
            (("prefill", 1, 2048, False), 1.08),
            (("prefill", 1, 2048, True), 1.45),
        )
    ),
    predicted=_predicted(),
    roofline=Roofline("C6"),
)
