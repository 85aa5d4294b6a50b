"""Triton kernel of `mask_overlap`, the portable form beside the CUDA extension's."""

import torch
import triton
import triton.language as tl
from memoir_fast.kernels import _launch
from memoir_fast.kernels._common import on_device_of, popcount, power_of_two, unsupported

__all__ = ["mask_overlap", "overlaps", "step", "unsupported"]


@triton.jit
def overlaps(
    query_ptr,
    store_ptr,
    n,
    held,
    W,
    stride_qw,
    stride_n,
    stride_w,
    STEP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Bits that the query shares with each of the store's rows n [BLOCK_N]; 0 where `held` is False.

    W is a multiple of 4, stride_n of STEP; said in a form that the compiler understands, they allow 16-byte loads.
    """
    rows = store_ptr + n.to(tl.int64)[:, None] * (stride_n // STEP * STEP)
    words = W // 4 * 4
    shared = tl.zeros((BLOCK_N, BLOCK_W), tl.int32)
    for start in range(0, words, BLOCK_W):
        w = start + tl.arange(0, BLOCK_W)
        offset = w.to(tl.int64)
        query = tl.load(query_ptr + offset * stride_qw, mask=w < words, other=0)
        store = tl.load(rows + offset[None, :] * stride_w, mask=held[:, None] & (w < words)[None, :], other=0)
        shared += popcount(query[None, :] & store)
    return tl.sum(shared, axis=1)


def step(store: torch.Tensor) -> int:
    """The largest of 4 and 1 that the store's row stride is a multiple of."""
    return 4 if store.stride(0) % 4 == 0 else 1


@triton.jit
def _mask_overlap(
    overlap_ptr, query_ptr, store_ptr, N, W, stride_qb, stride_qw, stride_n, stride_w,
    STEP: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr
):  # fmt: skip
    """Grid (N tiles * B,), the tiles of one query side by side."""
    tiles = tl.cdiv(N, BLOCK_N)
    b = (tl.program_id(0) // tiles).to(tl.int64)
    n = tl.program_id(0) % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    query_ptr += b * stride_qb
    shared = overlaps(query_ptr, store_ptr, n, n < N, W, stride_qw, stride_n, stride_w, STEP, BLOCK_N, BLOCK_W)
    tl.store(overlap_ptr + b * N + n, shared, mask=n < N)


def mask_overlap(query: torch.Tensor, store: torch.Tensor) -> torch.Tensor:
    """See `memoir_fast.ops.mask_overlap`. Reads the store once per query."""
    overlap = torch.empty((query.shape[0], store.shape[0]), dtype=torch.int32, device=query.device)
    if overlap.numel() == 0:
        return overlap
    config = _launch.config("mask_overlap", store, f"W{store.shape[1]}")
    block_n = power_of_two(store.shape[0], 1, config["BLOCK_N"])
    with on_device_of(query):
        _mask_overlap[(triton.cdiv(store.shape[0], block_n) * query.shape[0],)](
            overlap,
            query,
            store,
            store.shape[0],
            store.shape[1],
            *query.stride(),
            *store.stride(),
            STEP=step(store),
            BLOCK_N=block_n,
            BLOCK_W=power_of_two(store.shape[1], 4, config["BLOCK_W"]),
            **_launch.options(config),
        )
    return overlap
