"""`mask_columns` against reading masks bit by bit."""

import pytest
import torch

from memoir_fast.ops import mask_columns, tophash

OP = "mask_columns"

SIZES = [(1, 4, 1), (3, 4, 128), (2, 8, 63), (5, 12, 65), (2, 60, 1000), (1, 448, 4096), (65, 4, 40), (1, 2048, 14336)]


def random_masks(rows, words, device):
    return torch.randint(-(2**31), 2**31, (rows, words)).int().to(device)


def oracle(mask, k):
    listed = []
    for row in mask.tolist():
        whole = sum((word & 0xFFFFFFFF) << (32 * index) for index, word in enumerate(row))
        columns = [bit for bit, digit in enumerate(reversed(f"{whole:b}")) if digit == "1"][:k]
        listed.append(columns + [-1] * (k - len(columns)))
    return listed


def assert_matches_oracle(op, mask, k):
    columns = op(mask, k)
    assert columns.dtype == torch.int32 and columns.shape == (len(mask), k) and columns.is_contiguous()
    assert columns.tolist() == oracle(mask, k)


@pytest.mark.parametrize(("batch", "words", "k"), SIZES)
def test_random(op, backend, batch, words, k):
    mask = random_masks(batch, words, backend.device)
    assert_matches_oracle(op, mask, k)
    assert_matches_oracle(op, mask & random_masks(batch, words, backend.device), k)


def test_known_answers(op, backend):
    mask = [[5, 0, 1, 0], [0, 0, 0, -(2**31)], [0, 0, 0, 0], [-1, -1, -1, -1]]
    mask = torch.tensor(mask, dtype=torch.int32, device=backend.device)
    assert op(mask, 3).tolist() == [[0, 2, 64], [127, -1, -1], [-1, -1, -1], [0, 1, 2]]
    assert op(mask, 128)[3].tolist() == list(range(128))


@pytest.mark.parametrize(("width", "k"), [(63, 9), (1000, 300), (14336, 4096)])
def test_what_tophash_gives_as_columns(op, backend, width, k):
    feature = torch.randn(3, width, device=backend.device)
    mask, columns = tophash(feature, k, torch.randperm(width).int().to(backend.device))
    assert torch.equal(op(mask, k), columns)


def test_empty(op, backend):
    assert op(random_masks(0, 4, backend.device), 5).shape == (0, 5)


def test_strided_inputs(op, backend):
    every_other, transposed = random_masks(6, 16, backend.device)[::2, ::2], random_masks(8, 9, backend.device).T
    assert not every_other.is_contiguous() and not transposed.is_contiguous()
    assert_matches_oracle(op, every_other, 70)
    assert_matches_oracle(op, transposed, 70)
    assert_matches_oracle(op, random_masks(1, 8, backend.device).expand(4, 8), 40)


def test_same_call_same_bits(op, backend):
    mask = random_masks(4, 60, backend.device)
    assert torch.equal(op(mask, 900), op(mask, 900))


@pytest.mark.parametrize(
    ("mask", "k", "error", "message"),
    [
        (torch.zeros(2, 4), 1, TypeError, "mask must be int32 [B, W], got float32 [2, 4]"),
        (torch.zeros(4).int(), 1, ValueError, "mask must be int32 [B, W], got int32 [4]"),
        (torch.zeros(2, 4).int(), 0, ValueError, "k must lie in [1, 32 W = 128], got 0"),
        (torch.zeros(2, 4).int(), 129, ValueError, "k must lie in [1, 32 W = 128], got 129"),
        (torch.zeros(2, 0).int(), 1, ValueError, "k must lie in [1, 32 W = 0], got 1"),
    ],
)
def test_errors(mask, k, error, message):
    with pytest.raises(error) as caught:
        mask_columns(mask, k)
    assert str(caught.value) == message


def test_opcheck(opcheck, backend):
    opcheck(OP, random_masks(3, 8, backend.device), 20)
    opcheck(OP, random_masks(8, 5, backend.device).T, 20)


def test_compiles_whole(backend, same_compiled):
    same_compiled(random_masks(3, 8, backend.device), 20)
