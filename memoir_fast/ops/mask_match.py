"""`mask_match`: the stored edit whose mask overlaps a query's most, among those that it overlaps enough.

`mask_match_sketch` is the same for very large stores, from a sample of every mask; it can miss, rarely and known.
TopHash permutes a mask's bits at random, so its first tiles of 1,024 bits are a uniform sample of it, and the overlap
inside them is hypergeometric. Rows are ranked by that partial overlap, and only the best ones are compared in full:
what is reported is exact, but the best row may not be among them.
"""

import math
from collections.abc import Callable
from typing import Any

import torch

from memoir_fast import checks
from memoir_fast.backends import Native
from memoir_fast.ops.mask_overlap import mask_overlap
from memoir_fast.ops.registration import register
from memoir_fast.reference.mask_match import mask_match as mask_match_in_torch

_MOST_BITS = 2**31 - 1
TILE_BITS = 1024


def _check(query: torch.Tensor, store: torch.Tensor, count: torch.Tensor, min_overlap: torch.Tensor) -> None:
    checks.tensor("query", query, torch.int32, "B W")
    checks.tensor("store", store, torch.int32, "C W", W=query.shape[1])
    checks.tensor("count", count, torch.int32, "")
    checks.tensor("min_overlap", min_overlap, torch.int32, "C", C=store.shape[0])
    checks.same_device(query=query, store=store, count=count, min_overlap=min_overlap)
    if query.shape[1] == 0 or query.shape[1] % 4:
        raise ValueError(f"W must be a positive multiple of 4 words (16 bytes), got {query.shape[1]}")
    checks.index_range("count", count, 0, store.shape[0] + 1)


def _fake(
    query: torch.Tensor, store: torch.Tensor, count: torch.Tensor, min_overlap: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return query.new_empty(query.shape[0]), query.new_empty(query.shape[0])


def _triton() -> tuple[Callable[..., Any], Callable[..., str | None]]:
    from memoir_fast.kernels import mask_match as kernels

    return kernels.mask_match, kernels.unsupported


_op = register(
    "mask_match",
    "(Tensor query, Tensor store, Tensor count, Tensor min_overlap) -> (Tensor, Tensor)",
    _check,
    _fake,
    reference=mask_match_in_torch,
    triton=_triton,
    cpu=Native(),
    cuda=Native(),
)


def mask_match(
    query: torch.Tensor, store: torch.Tensor, count: torch.Tensor, min_overlap: torch.Tensor | int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Routes each query to the stored mask that it shares most bits with, of those that reach their own threshold.

    The lowest row wins a tie. Scan and arg-max are one pass; nothing of size [B, C] is written. A row of zeros (a
    deleted edit) never matches.

    Args:
        query (Tensor): packed masks, int32 [B, W].
        store (Tensor): packed masks, int32 [C, W], of which the first `count` rows are looked at.
        count (Tensor): int32 [], on the store's device, 0 <= count <= C. A kernel clamps a value outside; on the CPU
            it raises.
        min_overlap (Tensor or int): int32 [C], each row's threshold in bits, tau * k rounded up; a value below 1 counts
            as 1. One int >= 1 stands for all rows, at the price of making a tensor of it: give the tensor where
            microseconds count.

    Returns:
        edit (Tensor): int32 [B], the matched row: of those that share at least their own threshold, the one that shares
            most; -1 where there is none.
        overlap (Tensor): int32 [B], bits shared with the matched row; without a match, with the row that shares most;
            0 where count is 0.

    Raises:
        TypeError, ValueError: on a wrong dtype, shape or device, or an int below 1.

    Bytes read: 4 * W * (count + B) + 4 * count; written: 8 * B. Source: MEMOIR (arXiv 2506.07899), section 3.3.

    Example:
        >>> import torch
        >>> from memoir_fast.ops import mask_match
        >>> store = torch.tensor([[1, 0, 0, 0], [7, 0, 0, 0], [7, 0, 0, 0]]).int()
        >>> mask_match(torch.tensor([[6, 0, 0, 0], [8, 0, 0, 0]]).int(), store, torch.tensor(3).int(), 2)
        (tensor([ 1, -1], dtype=torch.int32), tensor([2, 0], dtype=torch.int32))
        >>> mask_match(torch.tensor([[6, 0, 0, 0]]).int(), store, torch.tensor(3).int(), torch.tensor([1, 3, 2]).int())
        (tensor([2], dtype=torch.int32), tensor([2], dtype=torch.int32))
    """
    if isinstance(min_overlap, int):
        if min_overlap < 1:
            raise ValueError(f"min_overlap must be at least 1, got {min_overlap}")
        min_overlap = query.new_full((1,), min(min_overlap, _MOST_BITS), dtype=torch.int32).expand(store.shape[0])
    edit, overlap = _op(query, store, count, min_overlap)
    return edit, overlap


def mask_match_sketch(
    query: torch.Tensor,
    store: torch.Tensor,
    count: torch.Tensor,
    min_overlap: torch.Tensor | int,
    *,
    tiles: int = 4,
    candidates: int = 1024,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best of the `candidates` rows whose first `tiles` * 1,024 bits share most bits with the query's.

    Reads 128 * `tiles` bytes of every row, and `candidates` rows in full, where `mask_match` reads all of every row.
    `miss_probability` says how likely the best row is passed over.

    Args:
        query (Tensor): packed masks, int32 [B, W], their bits permuted at random, as TopHash does.
        store (Tensor): packed masks, int32 [C, W].
        count (Tensor): int32 [], on the store's device: rows in use.
        min_overlap (Tensor or int): thresholds in bits, int32 [C] or one >= 1 for all rows. Candidates are chosen by
            overlap alone: where thresholds differ, a row that would match may be none of them.
        tiles (int): >= 1. Default: 4.
        candidates (int): rows compared in full, >= 1. Default: 1024.

    Returns:
        edit, overlap (Tensor): int32 [B] each, what `mask_match` finds among the candidates; overlaps are exact.

    Raises:
        TypeError, ValueError: as `mask_match`, or on tiles or candidates below 1.

    Example:
        >>> import torch
        >>> from memoir_fast.ops.mask_match import mask_match_sketch
        >>> store = torch.arange(4000).int()[:, None].repeat(1, 64)
        >>> edit, overlap = mask_match_sketch(store[2047:2048], store, torch.tensor(4000).int(), 1, tiles=1)
        >>> edit.item(), overlap.item()
        (2047, 704)
    """
    if tiles < 1 or candidates < 1:
        raise ValueError(f"tiles and candidates must be at least 1, got {tiles} and {candidates}")
    rows, sample = store.shape[0], tiles * TILE_BITS // 32
    if candidates >= rows or sample >= store.shape[1]:
        return mask_match(query, store, count, min_overlap)
    partial = mask_overlap(query[:, :sample], store[:, :sample]).long()
    row = torch.arange(rows, device=store.device)
    rank = torch.where(row < count, partial * rows + (rows - 1 - row), -1)  # most bits, then the lowest row
    best = rank.topk(candidates, dim=1)
    chosen = torch.where(best.values >= 0, best.indices, rows).sort(dim=1).values  # rows in use first, ascending
    used = (best.values >= 0).sum(dim=1).int()

    edit, overlap = torch.empty_like(query[:, 0]), torch.empty_like(query[:, 0])
    for i, own in enumerate(chosen):
        chosen_rows = own.clamp(max=rows - 1)
        least = min_overlap if isinstance(min_overlap, int) else min_overlap[chosen_rows]
        place, overlap[i : i + 1] = mask_match(query[i : i + 1], store[chosen_rows], used[i], least)
        edit[i : i + 1] = torch.where(place < 0, -1, own[place.clamp(min=0)]).int()
    return edit, overlap


def miss_probability(
    width: int, k: int, overlap: int, rows: int, *, base: float | None = None, tiles: int = 4, candidates: int = 1024
) -> float:
    """How likely `mask_match_sketch` passes over a row that shares `overlap` of its k bits with the query.

    Every other row is taken to share `base` * k bits (chance alone: k / width, the default). A candidate must reach the
    partial overlap that at most `candidates` of them are expected to reach; whether a row does is hypergeometric.

    Example:
        >>> from memoir_fast.ops.mask_match import miss_probability
        >>> miss_probability(14336, 4096, round(0.465 * 4096), 1_000_000, base=0.30) < 1e-12
        True
    """
    sample = min(width, tiles * TILE_BITS)
    if candidates >= rows or sample == width:
        return 0.0
    shared = round((k / width if base is None else base) * k)
    tail, needed = 0.0, sample + 1
    while needed > 0 and rows * (tail + _chance(needed - 1, width, shared, sample)) <= candidates:
        needed -= 1
        tail += _chance(needed, width, shared, sample)
    return min(1.0, math.fsum(_chance(bits, width, overlap, sample) for bits in range(needed)))


def _chance(bits: int, width: int, shared: int, sample: int) -> float:
    """P(exactly `bits` of the `shared` bits, placed at random among `width`, fall into the `sample`)."""
    if not max(0, sample + shared - width) <= bits <= min(shared, sample):
        return 0.0
    return math.exp(_log_choose(shared, bits) + _log_choose(width - shared, sample - bits) - _log_choose(width, sample))


def _log_choose(n: int, r: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(r + 1) - math.lgamma(n - r + 1)
