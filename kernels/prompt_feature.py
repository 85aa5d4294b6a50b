"""Triton kernel of `prompt_feature`: one launch, one read of the marked tokens."""

import torch
import triton
import triton.language as tl
from memoir_fast.kernels import _launch
from memoir_fast.kernels._common import on_device_of, power_of_two, unsupported

from memoir_fast.reference.prompt_feature import BLOCK

__all__ = ["prompt_feature", "unsupported"]


@triton.jit
def _add_in_order(total, sums):
    """total [BLOCK_D] plus the eight rows of sums [8, BLOCK_D], one after another: the order is part of the op."""
    width: tl.constexpr = sums.shape[1]
    even, odd = tl.split(tl.reshape(tl.trans(sums), (width, 4, 2)))
    even_low, even_high = tl.split(tl.reshape(even, (width, 2, 2)))  # rows 0 4 | 2 6
    odd_low, odd_high = tl.split(tl.reshape(odd, (width, 2, 2)))  # rows 1 5 | 3 7
    row0, row4 = tl.split(even_low)
    row2, row6 = tl.split(even_high)
    row1, row5 = tl.split(odd_low)
    row3, row7 = tl.split(odd_high)
    return total + row0 + row1 + row2 + row3 + row4 + row5 + row6 + row7


@triton.jit
def _prompt_feature(
    feature_ptr,
    x_ptr,
    mask_ptr,
    mu_ptr,
    S,
    D,
    stride_xb,
    stride_xs,
    stride_xd,
    stride_mb,
    stride_ms,
    stride_mu,
    TOKENS: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Grid (B, D tiles). Each program finds the prompt's first token, then walks over its blocks of tokens."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    mask_ptr += row * stride_mb
    x_ptr += row * stride_xb + d[None, :].to(tl.int64) * stride_xd

    token = tl.arange(0, BLOCK_S)
    firsts = tl.full((BLOCK_S,), 0x7FFFFFFF, tl.int32)
    counts = tl.zeros((BLOCK_S,), tl.int32)
    for start in range(0, S, BLOCK_S):
        s = start + token
        marked = tl.load(mask_ptr + s.to(tl.int64) * stride_ms, mask=s < S, other=0) != 0
        firsts = tl.minimum(firsts, tl.where(marked, s, 0x7FFFFFFF))
        counts += marked.to(tl.int32)
    first = tl.minimum(tl.min(firsts, axis=0), S)
    count = tl.sum(counts, axis=0)

    block = tl.arange(0, 8)
    total = tl.zeros((BLOCK_D,), tl.float32)
    for start in range(0, S - first, 8 * TOKENS):
        sums = tl.zeros((8, BLOCK_D), tl.float32)
        for turn in range(0, TOKENS, 16):
            for step in tl.static_range(16):  # that many loads are in flight at once
                s = first + start + block * TOKENS + turn + step
                marked = tl.load(mask_ptr + s.to(tl.int64) * stride_ms, mask=s < S, other=0) != 0
                value = tl.load(
                    x_ptr + s[:, None].to(tl.int64) * stride_xs, mask=marked[:, None] & (d < D)[None, :], other=0.0
                )
                sums += value.to(tl.float32)
        total = _add_in_order(total, sums)

    mu = tl.load(mu_ptr + d * stride_mu, mask=d < D, other=0.0)
    mean = tl.div_rn(total, tl.zeros((BLOCK_D,), tl.float32) + count.to(tl.float32))
    tl.store(feature_ptr + row * D + d, mean - mu, mask=d < D)


def prompt_feature(x: torch.Tensor, prompt_mask: torch.Tensor, mu: torch.Tensor) -> torch.Tensor:
    """See `memoir_fast.ops.prompt_feature`. The same bits as the reference: the same order, IEEE division."""
    batch, tokens, width = x.shape
    feature = torch.empty((batch, width), dtype=torch.float32, device=x.device)
    if feature.numel() == 0:
        return feature
    config = _launch.config("prompt_feature", x, f"D{width}")
    block_d = power_of_two(width, 16, config["BLOCK_D"])
    with on_device_of(x):
        _prompt_feature[(batch, triton.cdiv(width, block_d))](
            feature,
            x,
            prompt_mask,
            mu,
            tokens,
            width,
            *x.stride(),
            *prompt_mask.stride(),
            mu.stride(0),
            TOKENS=BLOCK,
            BLOCK_S=power_of_two(tokens, 16, 256),
            BLOCK_D=block_d,
            **_launch.options(config),
        )
    return feature
