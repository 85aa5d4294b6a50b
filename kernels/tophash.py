"""Triton kernel of `tophash`: selection, permutation, packing and columns in one launch."""

import torch
import triton
import triton.language as tl
from memoir_fast.kernels import _launch
from memoir_fast.kernels._common import on_device_of, popcount, power_of_two, unsupported

from memoir_fast.ops._checks import words

__all__ = ["tophash", "unsupported"]

_WHOLE = 16384  # the widest row that stays in registers: 32 magnitudes a thread at 512 threads
_CHUNK = 8192  # of a wider row the first chunk stays there; the others are read again, from cache, in each round
_WORDS = 512  # words of the mask unpacked at a time
_PARTS = 8  # programs that share the output of one row ...
_FEW_ROWS = 8  # ... where so few rows leave the GPU idle: less latency for the work of selecting eight times
_INFINITY = tl.constexpr(0x7F800000)  # the smallest magnitude pattern that is not finite
_GUESSES = tl.constexpr(12)  # rounds that may interpolate; bisection bounds what is left by 31


@triton.jit
def _magnitudes(feature_ptr, start, D, stride_d, BLOCK: tl.constexpr):
    """Bit patterns of |feature| [BLOCK], which order as the magnitudes do; -1, below all, past the row's end."""
    i = start + tl.arange(0, BLOCK)
    value = tl.load(feature_ptr + i.to(tl.int64) * stride_d, mask=i < D, other=0.0)
    return tl.where(i < D, value.to(tl.int32, bitcast=True) & 0x7FFFFFFF, -1)


@triton.jit
def _tied_before(magnitude, start, low, high, index, BLOCK: tl.constexpr):
    """How many magnitudes in [low, high) one chunk holds before `index`."""
    i = start + tl.arange(0, BLOCK)
    return tl.sum(((magnitude >= low) & (magnitude < high) & (i < index)).to(tl.int32), axis=0)


@triton.jit
def _scatter(
    mask_ptr,
    permutation_ptr,
    magnitude,
    start,
    low,
    high,
    cutoff,
    first,
    last,
    D,
    stride_p,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sets the permuted bits of one chunk's chosen: magnitudes from `high` on, and from `low` on below the cutoff.

    Only bits in the words from `first` to `last` are set; returns how many of the chosen lie in the words before.
    """
    i = start + tl.arange(0, BLOCK)
    column = tl.load(permutation_ptr + i.to(tl.int64) * stride_p, mask=i < D, other=-1)
    chosen = (magnitude >= high) | ((magnitude >= low) & (i < cutoff))
    column = tl.where(chosen & (column < D), column, -1)
    before = first * 0
    if PARTS > 1:
        before += tl.sum(((column >= 0) & (column < first * 32)).to(tl.int32), axis=0)
        column = tl.where((column >= first * 32) & (column < last * 32), column, -1)
    bit = tl.full((BLOCK,), 1, tl.int32) << (column & 31)
    tl.atomic_or(mask_ptr + (column >> 5), bit, mask=column >= 0, sem="relaxed")
    return before


@triton.jit
def _tophash(
    mask_ptr,
    columns_ptr,
    feature_ptr,
    permutation_ptr,
    D,
    k,
    W,
    stride_fb,
    stride_fd,
    stride_p,
    CHUNKS: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Grid (B, PARTS). The row's first chunk, for D <= BLOCK all of it, stays in registers from the one read on.

    Each part selects for itself and writes its own share of the row's words and columns.
    """
    row = tl.program_id(0).to(tl.int64)
    feature_ptr += row * stride_fb
    mask_ptr += row * W
    columns_ptr += row * k
    part = tl.program_id(1)
    first = part * tl.cdiv(W, PARTS)
    last = tl.minimum(first + tl.cdiv(W, PARTS), W)
    word = tl.arange(0, BLOCK_W)
    for start in range(first, last, BLOCK_W):
        tl.store(mask_ptr + start + word, tl.zeros((BLOCK_W,), tl.int32), mask=start + word < last)

    magnitude = _magnitudes(feature_ptr, 0, D, stride_fd, BLOCK)
    largest = tl.max(magnitude, axis=0)
    for chunk in range(1, CHUNKS):
        largest = tl.maximum(largest, tl.max(_magnitudes(feature_ptr, chunk * BLOCK, D, stride_fd, BLOCK), axis=0))
    if largest >= _INFINITY:
        for start in range(part * BLOCK, k, PARTS * BLOCK):
            j = start + tl.arange(0, BLOCK)
            tl.store(columns_ptr + j, tl.full((BLOCK,), -1, tl.int32), mask=j < k)
        return

    # Invariant: at_low = count(magnitude >= low) >= k > count(magnitude >= high) = at_high.
    low = largest * 0
    high = largest + 1
    at_low = low + D
    at_high = low
    guesses = low
    stuck = low != 0
    while (high - low > 1) & (at_low != k):
        width = high - low
        share = (at_low - k).to(tl.float32) + 0.5
        step = (width.to(tl.float32) * (share / (at_low - at_high).to(tl.float32))).to(tl.int32)
        step = tl.where(stuck | (guesses >= _GUESSES), width // 2, step)
        middle = low + tl.maximum(tl.minimum(step, width - 1), 1)
        count = tl.sum((magnitude >= middle).to(tl.int32), axis=0)
        for chunk in range(1, CHUNKS):
            other = _magnitudes(feature_ptr, chunk * BLOCK, D, stride_fd, BLOCK)
            count += tl.sum((other >= middle).to(tl.int32), axis=0)
        enough = count >= k
        low = tl.where(enough, middle, low)
        at_low = tl.where(enough, count, at_low)
        high = tl.where(enough, high, middle)
        at_high = tl.where(enough, at_high, count)
        stuck = high - low > width // 2
        guesses += 1

    # Where more than k reach `low`, those in [low, high) tie; they are chosen below the index that makes k in all.
    cutoff = low * 0 + D
    if at_low > k:
        none = low * 0
        while cutoff - none > 1:
            middle = none + (cutoff - none) // 2
            count = _tied_before(magnitude, 0, low, high, middle, BLOCK)
            for chunk in range(1, CHUNKS):
                other = _magnitudes(feature_ptr, chunk * BLOCK, D, stride_fd, BLOCK)
                count += _tied_before(other, chunk * BLOCK, low, high, middle, BLOCK)
            enough = count >= k - at_high
            cutoff = tl.where(enough, middle, cutoff)
            none = tl.where(enough, none, middle)

    tl.debug_barrier()  # the zeros are in place before the first bit is set
    seen = _scatter(mask_ptr, permutation_ptr, magnitude, 0, low, high, cutoff, first, last, D, stride_p, PARTS, BLOCK)
    for chunk in range(1, CHUNKS):
        start = chunk * BLOCK
        other = _magnitudes(feature_ptr, start, D, stride_fd, BLOCK)
        seen += _scatter(
            mask_ptr, permutation_ptr, other, start, low, high, cutoff, first, last, D, stride_p, PARTS, BLOCK
        )
    tl.debug_barrier()  # every bit is set before the words are read back

    bit = tl.arange(0, 32)[None, :]
    below = ~(tl.full((1, 32), -1, tl.int32) << bit)
    for start in range(first, last, BLOCK_W):
        w = start + word
        packed = tl.load(mask_ptr + w, mask=w < last, other=0, cache_modifier=".cg")
        bits = popcount(packed)
        before = seen + tl.cumsum(bits, axis=0) - bits
        rank = before[:, None] + popcount(packed[:, None] & below)
        tl.store(columns_ptr + rank, w[:, None] * 32 + bit, mask=((packed[:, None] >> bit) & 1) != 0)
        seen += tl.sum(bits, axis=0)


def tophash(feature: torch.Tensor, k: int, permutation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """See `memoir_fast.ops.tophash`. Exact: a search on the magnitudes' bit patterns, about 11 rounds, 43 at most.

    Bits are set by integer atomics on the row's own words, whose result does not depend on their order.
    """
    batch, width = feature.shape
    mask = torch.empty((batch, words(width)), dtype=torch.int32, device=feature.device)
    columns = torch.empty((batch, k), dtype=torch.int32, device=feature.device)
    if batch == 0:
        return mask, columns
    block = power_of_two(width, 128) if width <= _WHOLE else _CHUNK
    config = _launch.config("tophash", feature, f"D{width}", f"block{block}")
    parts = _PARTS if batch <= _FEW_ROWS and mask.shape[1] >= 32 * _PARTS else 1
    with on_device_of(feature):
        _tophash[(batch, parts)](
            mask,
            columns,
            feature,
            permutation,
            width,
            k,
            mask.shape[1],
            *feature.stride(),
            permutation.stride(0),
            CHUNKS=triton.cdiv(width, block),
            PARTS=parts,
            BLOCK=block,
            BLOCK_W=power_of_two(triton.cdiv(mask.shape[1], parts), 4, _WORDS),
            **_launch.options(config),
        )
    return mask, columns
