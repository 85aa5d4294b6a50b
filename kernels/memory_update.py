"""Triton kernel of `memory_update`: memory[columns] += a^T c on the edit's rows only."""

import torch
import triton
import triton.language as tl
from memoir_fast.kernels import _launch
from memoir_fast.kernels._common import dot, on_device_of, power_of_two, unsupported

__all__ = ["memory_update", "unsupported"]


@triton.jit
def _memory_update(
    memory_ptr,
    columns_ptr,
    a_ptr,
    c_ptr,
    n,
    D,
    outputs,
    k,
    stride_wd,
    stride_wo,
    stride_k,
    stride_an,
    stride_ak,
    stride_cn,
    stride_co,
    BLOCK_N: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    """Grid (O tiles, k tiles): each program owns its tile of rows, reads it once and rounds it once."""
    j = tl.program_id(1) * BLOCK_J + tl.arange(0, BLOCK_J)
    o = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    row = tl.load(columns_ptr + j.to(tl.int64) * stride_k, mask=j < k, other=-1).to(tl.int64)
    held = ((row >= 0) & (row < D))[:, None] & (o < outputs)[None, :]
    memory_ptr += row[:, None] * stride_wd + o[None, :].to(tl.int64) * stride_wo
    a_ptr += j[None, :].to(tl.int64) * stride_ak
    c_ptr += o[None, :].to(tl.int64) * stride_co
    acc = tl.zeros((BLOCK_J, BLOCK_O), tl.float32)
    for start in range(0, n, BLOCK_N):
        i = start + tl.arange(0, BLOCK_N)
        token = i[:, None].to(tl.int64)
        a = tl.load(a_ptr + token * stride_an, mask=(i < n)[:, None] & (j < k)[None, :], other=0.0)
        c = tl.load(c_ptr + token * stride_cn, mask=(i < n)[:, None] & (o < outputs)[None, :], other=0.0)
        acc = dot(tl.trans(a), c, acc)
    value = tl.load(memory_ptr, mask=held, other=0.0).to(tl.float32) + acc
    tl.store(memory_ptr, value.to(memory_ptr.dtype.element_ty), mask=held)


def memory_update(memory: torch.Tensor, columns: torch.Tensor, a: torch.Tensor, c: torch.Tensor) -> None:
    """See `memoir_fast.ops.memory_update`. Deterministic: one program owns a tile and adds its tokens in order."""
    width, outputs = memory.shape
    tokens, k = a.shape
    if tokens == 0 or k == 0 or outputs == 0:
        return
    config = _launch.config("memory_update", a, f"k{k} O{outputs}")
    block_j = power_of_two(k, 16, config["BLOCK_J"])
    block_o = power_of_two(outputs, 16, config["BLOCK_O"])
    with on_device_of(memory):
        _memory_update[(triton.cdiv(outputs, block_o), triton.cdiv(k, block_j))](
            memory,
            columns,
            a,
            c,
            tokens,
            width,
            outputs,
            k,
            *memory.stride(),
            *columns.stride(),
            *a.stride(),
            *c.stride(),
            BLOCK_N=power_of_two(tokens, 16, config["BLOCK_N"]),
            BLOCK_J=block_j,
            BLOCK_O=block_o,
            **_launch.options(config),
        )
