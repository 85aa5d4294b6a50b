"""Triton kernels of `mask_match`, the portable form beside the CUDA extension's: a scan, then one small reduction."""

import torch
import triton
import triton.language as tl
from memoir_fast.kernels import _launch
from memoir_fast.kernels._common import on_device_of, power_of_two, unsupported
from memoir_fast.kernels.mask_overlap import overlaps, step

__all__ = ["mask_match", "unsupported"]


@triton.jit
def _scan(
    best_ptr,
    query_ptr,
    store_ptr,
    count_ptr,
    min_overlap_ptr,
    C,
    W,
    stride_qb,
    stride_qw,
    stride_n,
    stride_w,
    stride_m,
    STEP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Grid (B, P): the best of every P-th tile of rows, as one key.

    From the highest bit: whether the row reaches its threshold, 31 bits of overlap, 31 bits of 2^31 - 1 - row.
    """
    program = tl.program_id(1)
    programs = tl.num_programs(1)
    b = tl.program_id(0).to(tl.int64)
    count = tl.minimum(tl.maximum(tl.load(count_ptr), 0), C)
    best = tl.full((BLOCK_N,), -1, tl.int64)
    for start in range(program * BLOCK_N, count, programs * BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        shared = overlaps(
            query_ptr + b * stride_qb, store_ptr, n, n < count, W, stride_qw, stride_n, stride_w, STEP, BLOCK_N, BLOCK_W
        )
        least = tl.maximum(tl.load(min_overlap_ptr + n.to(tl.int64) * stride_m, mask=n < count, other=1), 1)
        key = ((shared >= least).to(tl.int64) << 62) | (shared.to(tl.int64) << 31) | (0x7FFFFFFF - n).to(tl.int64)
        best = tl.maximum(best, tl.where(n < count, key, -1))
    tl.store(best_ptr + b * programs + program, tl.max(best, axis=0))


@triton.jit
def _choose(edit_ptr, overlap_ptr, best_ptr, P, BLOCK_P: tl.constexpr):
    """Grid (B,): the best of a query's P keys, unpacked."""
    b = tl.program_id(0).to(tl.int64)
    p = tl.arange(0, BLOCK_P)
    best = tl.max(tl.load(best_ptr + b * P + p, mask=p < P, other=-1), axis=0)
    overlap = ((best >> 31) & 0x7FFFFFFF).to(tl.int32)
    row = 0x7FFFFFFF - (best & 0x7FFFFFFF).to(tl.int32)
    tl.store(edit_ptr + b, tl.where((best >> 62) > 0, row, -1))
    tl.store(overlap_ptr + b, tl.where(best < 0, 0, overlap))


def mask_match(
    query: torch.Tensor, store: torch.Tensor, count: torch.Tensor, min_overlap: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `memoir_fast.ops.mask_match`. Two launches, nothing of size [B, C]; reads the used rows once per query."""
    batch, capacity = query.shape[0], store.shape[0]
    edit = torch.empty(batch, dtype=torch.int32, device=query.device)
    overlap = torch.empty_like(edit)
    if batch == 0:
        return edit, overlap
    config = _launch.config("mask_match", store, f"W{store.shape[1]}")
    block_n = power_of_two(capacity, 1, config["BLOCK_N"])
    programs = max(1, min(triton.cdiv(capacity, block_n), config["PROGRAMS"]))
    best = torch.empty((batch, programs), dtype=torch.int64, device=query.device)
    with on_device_of(query):
        _scan[(batch, programs)](
            best,
            query,
            store,
            count,
            min_overlap,
            capacity,
            store.shape[1],
            *query.stride(),
            *store.stride(),
            min_overlap.stride(0),
            STEP=step(store),
            BLOCK_N=block_n,
            BLOCK_W=power_of_two(store.shape[1], 4, config["BLOCK_W"]),
            **_launch.options(config),
        )
        _choose[(batch,)](
            edit,
            overlap,
            best,
            programs,
            BLOCK_P=power_of_two(programs),
            num_warps=4,
            enable_fp_fusion=True,
        )
    return edit, overlap
