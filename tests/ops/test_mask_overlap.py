"""`mask_overlap` against counting bits one by one."""

import pytest
import torch

from memoir_fast.ops import mask_overlap

OP = "mask_overlap"

SIZES = [(1, 1, 4), (3, 63, 4), (2, 65, 8), (5, 100, 12), (2, 1000, 60), (1, 7, 448), (65, 3, 4), (1, 2, 2048)]


def random_masks(rows, words, device):
    return torch.randint(-(2**31), 2**31, (rows, words)).int().to(device)


def oracle(query, store):
    def as_integer(mask):
        return sum((word & 0xFFFFFFFF) << (32 * index) for index, word in enumerate(mask))

    stored = [as_integer(mask) for mask in store.tolist()]
    return [[(as_integer(mask) & other).bit_count() for other in stored] for mask in query.tolist()]


def assert_matches_oracle(op, query, store):
    overlap = op(query, store)
    assert overlap.dtype == torch.int32 and overlap.shape == (len(query), len(store)) and overlap.is_contiguous()
    assert overlap.tolist() == oracle(query, store)


@pytest.mark.parametrize(("batch", "edits", "words"), SIZES)
def test_random(op, backend, batch, edits, words):
    assert_matches_oracle(op, random_masks(batch, words, backend.device), random_masks(edits, words, backend.device))


def test_known_answers(op, backend):
    full = torch.full((1, 4), -1, dtype=torch.int32, device=backend.device)
    sign = torch.tensor([[-(2**31)] * 4], dtype=torch.int32, device=backend.device)
    none = torch.zeros((1, 4), dtype=torch.int32, device=backend.device)
    store = torch.cat([full, sign, none])
    assert op(full, store).tolist() == [[128, 4, 0]]
    assert op(sign, store).tolist() == [[4, 4, 0]]
    assert op(none, store).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize(("batch", "edits"), [(0, 3), (2, 0), (0, 0)])
def test_empty(op, backend, batch, edits):
    overlap = op(random_masks(batch, 4, backend.device), random_masks(edits, 4, backend.device))
    assert overlap.shape == (batch, edits) and overlap.dtype == torch.int32


def test_strided_inputs(op, backend):
    query, store = random_masks(6, 16, backend.device)[::2, ::2], random_masks(8, 9, backend.device).T
    assert not query.is_contiguous() and not store.is_contiguous()
    assert_matches_oracle(op, query, store)
    one_row = random_masks(1, 8, backend.device).expand(4, 8)
    assert_matches_oracle(op, query, one_row)


def test_same_call_same_bits(op, backend):
    query, store = random_masks(4, 60, backend.device), random_masks(500, 60, backend.device)
    first = op(query, store)
    torch.set_num_threads(2)
    try:
        assert torch.equal(first, op(query, store))
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("query", "store", "error", "message"),
    [
        (torch.zeros(2, 4), torch.zeros(3, 4).int(), TypeError, "query must be int32 [B, W], got float32 [2, 4]"),
        (torch.zeros(4).int(), torch.zeros(3, 4).int(), ValueError, "query must be int32 [B, W], got int32 [4]"),
        (torch.zeros(2, 4).int(), torch.zeros(3, 4).long(), TypeError, "store must be int32 [N, 4], got int64 [3, 4]"),
        (torch.zeros(2, 4).int(), torch.zeros(3, 8).int(), ValueError, "store must be int32 [N, 4], got int32 [3, 8]"),
        (
            torch.zeros(2, 3).int(),
            torch.zeros(3, 3).int(),
            ValueError,
            "W must be a positive multiple of 4 words (16 bytes), got 3",
        ),
        (
            torch.zeros(2, 0).int(),
            torch.zeros(3, 0).int(),
            ValueError,
            "W must be a positive multiple of 4 words (16 bytes), got 0",
        ),
    ],
)
def test_errors(query, store, error, message):
    with pytest.raises(error) as caught:
        mask_overlap(query, store)
    assert str(caught.value) == message


@pytest.mark.gpu
def test_one_device():
    with pytest.raises(ValueError, match="all tensors must be on one device, got query on cpu, store on cuda:0"):
        mask_overlap(torch.zeros(2, 4).int(), torch.zeros(2, 4).int().cuda())


def test_opcheck(opcheck, backend):
    opcheck(OP, random_masks(3, 8, backend.device), random_masks(5, 8, backend.device))
    opcheck(OP, random_masks(3, 8, backend.device), random_masks(8, 5, backend.device).T)


def test_compiles_whole(backend, same_compiled):
    same_compiled(random_masks(3, 8, backend.device), random_masks(5, 8, backend.device))
