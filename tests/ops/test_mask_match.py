"""`mask_match` against a loop over the store."""

import pytest
import torch

from memoir_fast.ops import mask_match

OP = "mask_match"

SIZES = [(1, 1, 4), (1, 63, 4), (3, 65, 8), (2, 100, 12), (5, 1000, 4), (2, 4097, 4), (65, 33, 4), (1, 9, 448)]


def random_masks(rows, words, device):
    return torch.randint(-(2**31), 2**31, (rows, words)).int().to(device)


def scalar(value, device):
    return torch.tensor(value, dtype=torch.int32, device=device)


def thresholds(bits, rows, device):
    return torch.full((rows,), bits, dtype=torch.int32, device=device)


def oracle(query, store, count, min_overlap):
    edits, overlaps = [], []
    for mask in query.tolist():
        best = (False, 0, 0)  # whether it reaches its threshold, bits shared, -row
        for row, (other, least) in enumerate(zip(store.tolist()[:count], min_overlap.tolist(), strict=False)):
            bits = sum(((a & b) & 0xFFFFFFFF).bit_count() for a, b in zip(mask, other, strict=True))
            if (found := (bits >= max(1, least), bits, -row)) > best or row == 0:
                best = found
        edits.append(-best[2] if best[0] else -1)
        overlaps.append(best[1])
    return edits, overlaps


def assert_matches_oracle(op, query, store, count, min_overlap):
    if isinstance(min_overlap, int):
        min_overlap = thresholds(min_overlap, len(store), store.device)
    edit, overlap = op(query, store, scalar(count, query.device), min_overlap)
    assert edit.dtype == overlap.dtype == torch.int32
    assert edit.shape == overlap.shape == (len(query),)
    assert (edit.tolist(), overlap.tolist()) == oracle(query, store, count, min_overlap)


@pytest.mark.parametrize(("batch", "capacity", "words"), SIZES)
@pytest.mark.parametrize("filled", ["all", "most", "one", "none"])
def test_random(op, backend, batch, capacity, words, filled):
    count = {"all": capacity, "most": capacity - capacity // 3, "one": 1, "none": 0}[filled]
    query, store = random_masks(batch, words, backend.device), random_masks(capacity, words, backend.device)
    assert_matches_oracle(op, query, store, count, 9 * words)


@pytest.mark.parametrize("capacity", [2, 64, 65, 1000])
def test_ties_take_the_lowest_row(op, backend, capacity):
    store = torch.randint(0, 8, (capacity, 4)).int().to(backend.device)
    query = torch.randint(0, 8, (5, 4)).int().to(backend.device)
    assert_matches_oracle(op, query, store, capacity, 1)
    same = random_masks(1, 4, backend.device).expand(capacity, 4)
    edit, _ = op(same[:1], same, scalar(capacity, backend.device), thresholds(1, capacity, backend.device))
    assert edit.tolist() == [0]


def test_best_row_anywhere(op, backend):
    query = random_masks(1, 8, backend.device)
    for row in (0, 1, 31, 32, 255, 256, 998, 999):
        store = random_masks(1000, 8, backend.device)
        store[row] = query[0]
        bits = sum((word & 0xFFFFFFFF).bit_count() for word in query[0].tolist())
        least = thresholds(bits, 1000, backend.device)
        edit, overlap = op(query, store, scalar(1000, backend.device), least)
        assert (edit.tolist(), overlap.tolist()) == ([row], [bits])
        edit, _ = op(query, store, scalar(row, backend.device), least)
        assert edit.tolist() == [-1]


def test_threshold_is_inclusive(op, backend):
    query = torch.tensor([[7, 0, 0, 0]], dtype=torch.int32, device=backend.device)
    for min_overlap, edit in ((1, 0), (3, 0), (4, -1), (2**31 - 1, -1)):
        found, overlap = op(query, query, scalar(1, backend.device), thresholds(min_overlap, 1, backend.device))
        assert (found.tolist(), overlap.tolist()) == ([edit], [3])


def test_rows_of_zeros_never_match(op, backend):
    store = torch.zeros(3, 4, dtype=torch.int32, device=backend.device)
    store[2, 0] = 1
    query = torch.tensor([[1, 0, 0, 0], [2, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.int32, device=backend.device)
    for least in (1, 0, -(2**31)):  # below 1 counts as 1
        edit, overlap = op(query, store, scalar(3, backend.device), thresholds(least, 3, backend.device))
        assert (edit.tolist(), overlap.tolist()) == ([2, -1, -1], [1, 0, 0])


def test_rows_past_count_are_not_read(op, backend):
    query = random_masks(2, 4, backend.device)
    store = torch.cat([torch.zeros_like(query), query])
    edit, overlap = op(query, store, scalar(2, backend.device), thresholds(1, 4, backend.device))
    assert (edit.tolist(), overlap.tolist()) == ([-1, -1], [0, 0])


@pytest.mark.parametrize(("batch", "capacity"), [(0, 3), (2, 0), (0, 0)])
def test_empty(op, backend, batch, capacity):
    query, store = random_masks(batch, 4, backend.device), random_masks(capacity, 4, backend.device)
    edit, overlap = op(query, store, scalar(capacity, backend.device), thresholds(1, capacity, backend.device))
    if capacity == 0:
        assert (edit.tolist(), overlap.tolist()) == ([-1] * batch, [0] * batch)
    assert edit.shape == overlap.shape == (batch,)


def test_strided_inputs(op, backend):
    query, store = random_masks(6, 16, backend.device)[::2, ::2], random_masks(8, 90, backend.device).T
    assert not query.is_contiguous() and not store.is_contiguous()
    assert_matches_oracle(op, query, store, 77, 1)
    spread = torch.arange(180, dtype=torch.int32, device=backend.device)[::2]
    assert_matches_oracle(op, query, store, 90, spread)
    assert_matches_oracle(op, query, store, 90, thresholds(250, 1, backend.device).expand(90))


@pytest.mark.parametrize("batch", [1, 2, 5, 17, 33])
def test_every_row_has_its_own_threshold(op, backend, batch):
    query, store = random_masks(batch, 8, backend.device), random_masks(300, 8, backend.device)
    for low, high in ((60, 80), (75, 90), (1, 256), (-5, 5)):
        assert_matches_oracle(op, query, store, 299, torch.randint(low, high, (300,)).int().to(backend.device))


def test_a_row_that_reaches_its_threshold_goes_before_one_that_shares_more(op, backend):
    store = torch.tensor([[7], [3], [1], [3]], dtype=torch.int32, device=backend.device).repeat(1, 4)
    for least, edit, bits in (
        ([12, 1, 1, 1], 0, 12),
        ([13, 8, 1, 8], 1, 8),
        ([13, 9, 1, 8], 3, 8),
        ([13, 9, 4, 9], 2, 4),
        ([13, 9, 5, 9], -1, 12),
    ):
        least = torch.tensor(least, dtype=torch.int32, device=backend.device)
        found = op(store[:1], store, scalar(4, backend.device), least)
        assert [part.tolist() for part in found] == [[edit], [bits]]


def test_an_int_stands_for_every_row(backend):
    query, store = random_masks(3, 8, backend.device), random_masks(40, 8, backend.device)
    for bits in (1, 64, 75, 2**31 - 1, 2**40):
        least = thresholds(min(bits, 2**31 - 1), 40, backend.device)
        given = mask_match(query, store, scalar(40, backend.device), bits)
        assert all(
            torch.equal(*pair)
            for pair in zip(given, mask_match(query, store, scalar(40, backend.device), least), strict=True)
        )


def test_same_call_same_bits(op, backend):
    query, store = random_masks(3, 8, backend.device), random_masks(2000, 8, backend.device)
    count = scalar(1999, backend.device)
    least = thresholds(1, 2000, backend.device)
    first = op(query, store, count, least)
    torch.set_num_threads(2)
    try:
        again = op(query, store, count, least)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])


@pytest.mark.gpu
@pytest.mark.parametrize("count", [-5, 4, 2**31 - 1])
def test_count_outside_is_clamped_on_a_device(count):
    query, store = random_masks(2, 4, "cuda"), random_masks(3, 4, "cuda")
    edit, overlap = mask_match(query, store, scalar(count, "cuda"), 1)
    assert (edit.tolist(), overlap.tolist()) == oracle(query, store, min(max(count, 0), 3), thresholds(1, 3, "cuda"))


def masks(rows, words, dtype=torch.int32):
    return torch.ones(rows, words, dtype=dtype)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"query": masks(2, 4, torch.int64)}, TypeError, "query must be int32 [B, W], got int64 [2, 4]"),
        ({"query": masks(2, 4)[0]}, ValueError, "query must be int32 [B, W], got int32 [4]"),
        ({"store": masks(3, 4, torch.uint8)}, TypeError, "store must be int32 [C, 4], got uint8 [3, 4]"),
        ({"store": masks(3, 8)}, ValueError, "store must be int32 [C, 4], got int32 [3, 8]"),
        ({"count": torch.tensor(3)}, TypeError, "count must be int32 [], got int64 []"),
        ({"count": torch.tensor([3]).int()}, ValueError, "count must be int32 [], got int32 [1]"),
        ({"count": torch.tensor(4).int()}, ValueError, "count must lie in [0, 4), got values from 4 to 4"),
        ({"count": torch.tensor(-1).int()}, ValueError, "count must lie in [0, 4), got values from -1 to -1"),
        ({"min_overlap": 0}, ValueError, "min_overlap must be at least 1, got 0"),
        ({"min_overlap": torch.ones(3)}, TypeError, "min_overlap must be int32 [3], got float32 [3]"),
        ({"min_overlap": torch.ones(2).int()}, ValueError, "min_overlap must be int32 [3], got int32 [2]"),
        (
            {"query": masks(2, 5), "store": masks(3, 5)},
            ValueError,
            "W must be a positive multiple of 4 words (16 bytes), got 5",
        ),
    ],
)
def test_errors(change, error, message):
    arguments = {"query": masks(2, 4), "store": masks(3, 4), "count": torch.tensor(3).int(), "min_overlap": 1}
    with pytest.raises(error) as caught:
        mask_match(**(arguments | change))
    assert str(caught.value) == message


def test_opcheck(opcheck, backend):
    query, store = random_masks(3, 8, backend.device), random_masks(5, 8, backend.device)
    opcheck(OP, query, store, scalar(4, backend.device), thresholds(100, 5, backend.device))


@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_whole(backend, same_compiled, compiler):
    query, store = random_masks(3, 8, backend.device), random_masks(5, 8, backend.device)
    same_compiled(query, store, scalar(4, backend.device), thresholds(100, 5, backend.device), compiler=compiler)
