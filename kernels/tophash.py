"""Triton kernels of `tophash`: selection, permutation, packing and columns in one launch, or two for many rows."""

import math

import torch
import triton
import triton.language as tl
from memoir_fast.kernels import _launch
from memoir_fast.kernels._common import on_device_of, popcount, power_of_two, unsupported
from triton.language.extra.cuda import gdc_launch_dependents

from memoir_fast.mask_format import words

__all__ = ["tophash", "unsupported"]

_WHOLE = 16384  # the widest row that stays in registers
_CHUNK = 8192  # of a wider row the first chunk stays there; the others are read again, from cache, in each round
_WORDS = 128  # words of the mask unpacked at a time
_PARTS = 8  # programs that share the output of one row ...
_FEW_ROWS = 8  # ... where so few rows leave the GPU idle: less latency for the work of selecting eight times
_INFINITY = tl.constexpr(0x7F800000)  # the smallest magnitude pattern that is not finite
_GUESSES = tl.constexpr(16)  # rounds that may interpolate; bisection bounds what is left by 31
_NEAR = tl.constexpr(8)  # so few magnitudes left are taken as evenly spread, more as falling off exponentially


@triton.jit
def _magnitudes(feature_ptr, start, D, stride_d, BLOCK: tl.constexpr):
    """Bit patterns of |feature| [BLOCK], which order as the magnitudes do; 0 past the row's end."""
    i = start + tl.arange(0, BLOCK)
    value = tl.load(feature_ptr + i.to(tl.int64) * stride_d, mask=i < D, other=0.0)
    return value.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def _reached(magnitude, threshold):
    """How many magnitudes reach a threshold above 0. A difference's sign bit is cheaper to add up than a comparison."""
    missed = tl.sum((magnitude - threshold).to(tl.uint32, bitcast=True) >> 31, axis=0)
    return magnitude.shape[0] - missed.to(tl.int32)


@triton.jit
def _tie_keys(magnitude, start, low, high, D, BLOCK: tl.constexpr):
    """Keys that break the tie in [low, high): D for its element of index 0, less for later ones; all above above it."""
    key = D - (start + tl.arange(0, BLOCK))
    return tl.where(magnitude >= high, 0x7FFFFFFF, tl.where(magnitude >= low, key, 0))


@triton.jit
def _mark(flags_ptr, permutation_ptr, key, start, bar, first, last, D, stride_p, BLOCK: tl.constexpr):
    """Flags the columns from `first` to `last` of one chunk's chosen, the keys from `low` on.

    Returns how many of the chosen have a column before.
    """
    i = start + tl.arange(0, BLOCK)
    column = tl.load(permutation_ptr + i.to(tl.int64) * stride_p, mask=i < D, other=0x7FFFFFFF)
    column = tl.where(key >= bar, column, 0x7FFFFFFF)
    offset = (column - first).to(tl.uint32, bitcast=True)  # negative, so with the sign bit, before `first`
    tl.store(flags_ptr + column, tl.full((BLOCK,), 1, tl.int1), mask=offset < (last - first).to(tl.uint32))
    return tl.sum(offset >> 31, axis=0).to(tl.int32)


@triton.jit
def _store_words(mask_ptr, columns_ptr, bits, start, last, seen, BLOCK_W: tl.constexpr):
    """Packs bits [BLOCK_W, 32] into the words from `start` to `last` and writes the numbers of those set.

    `seen` were written before; returns how many are now.
    """
    bit = tl.arange(0, 32)[None, :]
    single = tl.full((1, 32), 1, tl.int32) << bit
    word = start + tl.arange(0, BLOCK_W)
    packed = tl.sum(bits * single, axis=1)
    tl.store(mask_ptr + word, packed, mask=word < last)
    count = popcount(packed)
    before = seen + tl.cumsum(count, axis=0) - count
    rank = before[:, None] + popcount(packed[:, None] & (single - 1))
    column = word[:, None] * 32 + bit
    tl.store(columns_ptr + rank, column, mask=((packed[:, None] >> bit) & 1) != 0)
    return seen + tl.sum(count, axis=0)


@triton.jit
def _invert(inverse_ptr, permutation_ptr, D, stride_p, BLOCK: tl.constexpr):
    """One program. inverse [D]: where each column comes from, -1 where the permutation misses it."""
    i = tl.arange(0, BLOCK)
    for start in range(0, D, BLOCK):
        tl.store(inverse_ptr + start + i, tl.full((BLOCK,), -1, tl.int32), mask=start + i < D)
    tl.debug_barrier()
    for start in range(0, D, BLOCK):
        column = tl.load(permutation_ptr + (start + i).to(tl.int64) * stride_p, mask=start + i < D, other=-1)
        tl.store(inverse_ptr + column, start + i, mask=(column >= 0) & (column < D))


@triton.jit
def _tophash(
    mask_ptr,
    columns_ptr,
    feature_ptr,
    order_ptr,
    flags_ptr,
    D,
    k,
    W,
    reach,
    stride_fb,
    stride_fd,
    stride_o,
    GATHER: tl.constexpr,
    CHUNKS: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_W: tl.constexpr,
    ADMIT: tl.constexpr,
):
    """Grid (B, PARTS). The row's first chunk, for D <= BLOCK all of it, stays in registers from the one read on.

    Each part selects for itself and writes its own share of the row's words and columns. The order is the permutation,
    through which columns are flagged in memory, a byte each in flags [B, 32 W], or, with GATHER (one chunk, one part),
    its inverse, through which each column fetches its flag.
    ADMIT: the search, which waits for this kernel's results by itself, may begin to fetch the store meanwhile.
    """
    if ADMIT:
        gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    feature_ptr += row * stride_fb
    mask_ptr += row * W
    columns_ptr += row * k
    part = tl.program_id(1)
    first = part * tl.cdiv(W, PARTS)
    last = tl.minimum(first + tl.cdiv(W, PARTS), W)
    word = tl.arange(0, BLOCK_W)

    magnitude = _magnitudes(feature_ptr, 0, D, stride_fd, BLOCK)
    largest = tl.max(magnitude, axis=0)
    for chunk in range(1, CHUNKS):
        largest = tl.maximum(largest, tl.max(_magnitudes(feature_ptr, chunk * BLOCK, D, stride_fd, BLOCK), axis=0))
    if largest >= _INFINITY:
        for start in range(first, last, BLOCK_W):
            tl.store(mask_ptr + start + word, tl.zeros((BLOCK_W,), tl.int32), mask=start + word < last)
        for start in range(part * 1024, k, PARTS * 1024):
            j = start + tl.arange(0, 1024)
            tl.store(columns_ptr + j, tl.full((1024,), -1, tl.int32), mask=j < k)
        return

    # Invariant: at_low = count(magnitude >= low) >= k > count(magnitude >= high) = at_high. Patterns are logarithms to
    # a few percent: from their mean (of the first chunk), an exponential distribution's k-th lies `reach` up.
    low = largest * 0
    high = largest + 1
    at_low = low + D
    at_high = low
    rounds = low
    middle = tl.sum(magnitude >> 15, axis=0) // tl.minimum(D, BLOCK) * 32768 + reach
    value = low.to(tl.float32)
    count = at_low
    while (high - low > 1) & (at_low != k):
        middle = tl.maximum(tl.minimum(middle, high - 1), low + 1)
        last_count = count
        last_value = value
        value = middle.to(tl.float32, bitcast=True)
        count = _reached(magnitude, middle)
        for chunk in range(1, CHUNKS):
            count += _reached(_magnitudes(feature_ptr, chunk * BLOCK, D, stride_fd, BLOCK), middle)
        enough = count >= k
        low = tl.where(enough, middle, low)
        at_low = tl.where(enough, count, at_low)
        high = tl.where(enough, high, middle)
        at_high = tl.where(enough, at_high, count)
        rounds += 1
        # The next guess: where the secant of (count - k) / (count + k), near half of log(count / k), is 0; with few
        # left, evenly within the bracket; if neither falls into it, and in the end, its middle.
        near = at_low - at_high <= _NEAR
        dividend = (count - k).to(tl.float32) * (last_count + k).to(tl.float32)
        dividend = tl.where(near, (at_low - k).to(tl.float32) + 0.5, dividend)
        fall = (2 * (last_count - count)).to(tl.float32) * k
        divisor = tl.where(near, (at_low - at_high + 1).to(tl.float32), tl.where(fall == 0.0, 1.0, fall))
        step = tl.where(near, (high - low).to(tl.float32), value - last_value) * (dividend / divisor)
        evenly = low + tl.where(near, step, 0.0).to(tl.int32)
        guess = tl.where(near, evenly, (value + step).to(tl.int32, bitcast=True))
        inside = (guess > low) & (guess < high) & (rounds < _GUESSES)
        middle = tl.where(inside, guess, low + (high - low) // 2)

    # Where more than k reach `low`, those in [low, high) tie, and keys of their indices take the magnitudes' place.
    key = magnitude
    bar = low
    tied = at_low > k
    if tied:
        key = _tie_keys(magnitude, 0, low, high, D, BLOCK)
        bar = low * 0
        above = bar + D + 1
        while above - bar > 1:
            middle = (bar + above) // 2
            count = _reached(key, middle)
            for chunk in range(1, CHUNKS):
                other = _magnitudes(feature_ptr, chunk * BLOCK, D, stride_fd, BLOCK)
                count += _reached(_tie_keys(other, chunk * BLOCK, low, high, D, BLOCK), middle)
            enough = count >= k
            bar = tl.where(enough, middle, bar)
            above = tl.where(enough, above, middle)

    if GATHER:
        column = tl.arange(0, BLOCK)
        source = tl.load(order_ptr + column, mask=column < D, other=-1)
        bits = tl.gather((key >= bar).to(tl.int8), source & (BLOCK - 1), 0).to(tl.int32)
        bits = tl.reshape(tl.where(source >= 0, bits, 0), (BLOCK // 32, 32))
        _store_words(mask_ptr, columns_ptr, bits, 0, W, low * 0, BLOCK // 32)
    else:
        flags_ptr += row * W * 32
        bit = tl.arange(0, 32)[None, :]
        for start in range(first, last, BLOCK_W):
            w = (start + word)[:, None]
            tl.store(flags_ptr + w * 32 + bit, tl.zeros((BLOCK_W, 32), tl.int1), mask=w < last)
        tl.debug_barrier()  # the zeros are in place before the first flag is set
        end = tl.minimum(last * 32, D)
        seen = _mark(flags_ptr, order_ptr, key, 0, bar, first * 32, end, D, stride_o, BLOCK)
        for chunk in range(1, CHUNKS):
            start = chunk * BLOCK
            other = _magnitudes(feature_ptr, start, D, stride_fd, BLOCK)
            if tied:
                other = _tie_keys(other, start, low, high, D, BLOCK)
            seen += _mark(flags_ptr, order_ptr, other, start, bar, first * 32, end, D, stride_o, BLOCK)
        tl.debug_barrier()  # every flag is set before they are read back
        for start in range(first, last, BLOCK_W):
            w = (start + word)[:, None]
            flags = tl.load(flags_ptr + w * 32 + bit, mask=w < last, other=0, cache_modifier=".cg").to(tl.int32)
            seen = _store_words(mask_ptr, columns_ptr, flags, start, last, seen, BLOCK_W)


def _reach(k: int, width: int) -> int:
    """From the mean logarithm of exponentially distributed magnitudes to the one that k of them reach, in patterns."""
    tail = -math.log(min(k, width - 0.5) / width)
    return int((0.5772 + math.log(tail)) / math.log(2) * 2**23)


def tophash(feature: torch.Tensor, k: int, permutation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """See `memoir_fast.ops.tophash`. Exact: a search on the magnitudes' bit patterns, about 7 rounds, 47 at most.

    Few or very wide rows flag their columns in memory, a byte each; of many rows each column fetches its flag through
    the inverse permutation, which a first launch writes. Nothing depends on an order of execution.
    """
    batch, width = feature.shape
    mask = torch.empty((batch, words(width)), dtype=torch.int32, device=feature.device)
    columns = torch.empty((batch, k), dtype=torch.int32, device=feature.device)
    if batch == 0:
        return mask, columns
    block = power_of_two(width, 128) if width <= _WHOLE else _CHUNK
    gather = batch > _FEW_ROWS and width <= _WHOLE
    config = _launch.config("tophash", feature, f"D{width}", f"block{block}")
    flags = mask if gather else torch.empty((batch, mask.shape[1], 32), dtype=torch.bool, device=feature.device)
    parts = _PARTS if batch <= _FEW_ROWS and mask.shape[1] >= 32 * _PARTS else 1
    with on_device_of(feature):
        order = permutation
        if gather:
            order = torch.empty_like(permutation, memory_format=torch.contiguous_format)
            _invert[(1,)](order, permutation, width, permutation.stride(0), BLOCK=1024, num_warps=8)
        _tophash[(batch, parts)](
            mask,
            columns,
            feature,
            order,
            flags,
            width,
            k,
            mask.shape[1],
            _reach(k, width),
            *feature.stride(),
            order.stride(0),
            GATHER=gather,
            CHUNKS=triton.cdiv(width, block),
            PARTS=parts,
            BLOCK=block,
            BLOCK_W=power_of_two(triton.cdiv(mask.shape[1], parts), 4, _WORDS),
            ADMIT=batch <= _FEW_ROWS and _launch.admits(feature),
            **_launch.options(config),
        )
    return mask, columns
