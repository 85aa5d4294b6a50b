"""Triton kernel of `code_route`: one launch, a lane per prompt."""

import torch
import triton
import triton.language as tl
from memoir_fast.kernels import _launch
from memoir_fast.kernels._common import on_device_of, unsupported

__all__ = ["code_route", "unsupported"]

_PROMPTS = 128


@triton.jit
def _code_route(
    route_ptr,
    best_ptr,
    row_ptr,
    overlap_ptr,
    owner_ptr,
    room_ptr,
    B,
    C,
    stride_rb,
    stride_rq,
    stride_vb,
    stride_vq,
    stride_o,
    stride_f,
    Q: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """Grid (ceil(B / BLOCK_B),)."""
    prompt = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    inside = prompt < B
    row_ptr += prompt * stride_rb
    overlap_ptr += prompt * stride_vb
    row = tl.load(row_ptr, mask=inside, other=-1)
    overlap = tl.load(overlap_ptr, mask=inside, other=0)
    for q in tl.static_range(1, Q):
        other = tl.load(row_ptr + q * stride_rq, mask=inside, other=-1)
        bits = tl.load(overlap_ptr + q * stride_vq, mask=inside, other=0)
        better = tl.where((other >= 0) == (row >= 0), bits > overlap, other >= 0)
        row, overlap = tl.where(better, other, row), tl.where(better, bits, overlap)
    there = inside & (row >= 0) & (row < C)
    at = row.to(tl.int64)
    leads = tl.load(room_ptr + at * stride_f, mask=there, other=0) > 0
    owner = tl.load(owner_ptr + at * stride_o, mask=there, other=-1)
    tl.store(route_ptr + prompt, tl.where(leads, owner, -1), mask=inside)
    tl.store(best_ptr + prompt, overlap, mask=inside)


def code_route(
    row: torch.Tensor, overlap: torch.Tensor, owner: torch.Tensor, room: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `memoir_fast.ops.code_route`."""
    batch, codes = row.shape
    route, best = (torch.empty((batch,), dtype=torch.int32, device=row.device) for _ in range(2))
    if batch == 0:
        return route, best
    with on_device_of(row):
        _code_route[(triton.cdiv(batch, _PROMPTS),)](
            route,
            best,
            row,
            overlap,
            owner,
            room,
            batch,
            owner.shape[0],
            *row.stride(),
            *overlap.stride(),
            owner.stride(0),
            room.stride(0),
            Q=codes,
            BLOCK_B=_PROMPTS,
            **_launch.options({"num_warps": _PROMPTS // 32}),
        )
    return route, best
