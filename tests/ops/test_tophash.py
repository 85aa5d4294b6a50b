"""`tophash` against a sort in numpy."""

import numpy as np
import pytest
import torch

from memoir_fast.mask_format import pack, unpack
from memoir_fast.ops import mask_overlap, tophash

OP = "tophash"

SIZES = [(1, 1), (4, 2), (31, 31), (63, 20), (65, 1), (128, 128), (129, 64), (1000, 286), (4097, 1000), (14336, 4096)]


def words_of(width):
    return 4 * ((width + 127) // 128)


def oracle(feature, k, permutation):
    """Chosen columns, ascending, and the packed mask, row by row."""
    columns, masks = [], []
    for row in feature.cpu().numpy():
        order = np.argsort(-np.abs(row), kind="stable")[:k]
        chosen = np.sort(permutation.cpu().numpy()[order])
        words = [0] * words_of(len(row))
        for column in chosen.tolist():
            words[column // 32] |= 1 << (column % 32)
        columns.append(chosen)
        masks.append(words)
    shape = (len(feature), -1) if len(feature) else (0, words_of(feature.shape[1]))
    mask = np.array(masks, dtype=np.uint32).view(np.int32).reshape(shape)
    return mask, np.array(columns, dtype=np.int32).reshape(len(feature), k)


def assert_matches_oracle(op, feature, k, permutation):
    mask, columns = op(feature, k, permutation)
    expected_mask, expected_columns = oracle(feature, k, permutation)
    assert mask.dtype == columns.dtype == torch.int32
    assert mask.is_contiguous() and columns.is_contiguous()
    np.testing.assert_array_equal(columns.cpu().numpy(), expected_columns)
    np.testing.assert_array_equal(mask.cpu().numpy(), expected_mask)


def permutation_of(width, device="cpu"):
    return torch.randperm(width).int().to(device)


@pytest.mark.parametrize(("width", "k"), SIZES)
@pytest.mark.parametrize("batch", [1, 3])
def test_random(op, backend, width, k, batch):
    feature = torch.randn(batch, width).to(backend.device)
    assert_matches_oracle(op, feature, k, permutation_of(width, backend.device))


@pytest.mark.parametrize(("width", "k"), SIZES)
def test_ties_take_the_lower_index(op, backend, width, k):
    feature = torch.randint(-2, 3, (2, width)).float().to(backend.device)
    assert_matches_oracle(op, feature, k, permutation_of(width, backend.device))


def test_ties_of_bfloat16_features(op, backend):
    feature = (torch.randn(2, 14336) - 0.1).bfloat16().float().to(backend.device)
    assert_matches_oracle(op, feature, 4096, permutation_of(14336, backend.device))


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -3.5, 1e-45, 3.4e38])
def test_all_equal_takes_the_first_k(op, backend, value):
    feature = torch.full((1, 300), value, device=backend.device)
    feature[:, ::2] *= -1
    _, columns = op(feature, 77, torch.arange(300, device=backend.device).int())
    assert columns[0].tolist() == list(range(77))


def test_subnormal_magnitudes_are_ordered(op, backend):
    feature = torch.arange(1, 201, dtype=torch.int32).view(torch.float32)[None].to(backend.device)
    _, columns = op(feature, 10, torch.arange(200, device=backend.device).int())
    assert columns[0].tolist() == list(range(190, 200))


def test_largest_width(op, backend):
    feature = torch.randn(1, 65536).to(backend.device)
    assert_matches_oracle(op, feature, 30000, permutation_of(65536, backend.device))


def test_empty_batch(op, backend):
    mask, columns = op(torch.empty(0, 65, device=backend.device), 3, permutation_of(65, backend.device))
    assert mask.shape == (0, 4) and columns.shape == (0, 3)


def test_strided_inputs(op, backend):
    wide = torch.randn(6, 400).to(backend.device)
    feature = wide[::2, 1:200:2]
    permutation = permutation_of(100, backend.device).repeat_interleave(2)[::2]
    assert not feature.is_contiguous() and not permutation.is_contiguous()
    assert_matches_oracle(op, feature, 33, permutation)
    transposed = torch.randn(100, 3).to(backend.device).T
    assert_matches_oracle(op, transposed, 33, permutation)


def test_rows_do_not_depend_on_each_other(op, backend):
    feature, permutation = torch.randn(5, 333).to(backend.device), permutation_of(333, backend.device)
    mask, columns = op(feature, 100, permutation)
    for row in range(5):
        alone_mask, alone_columns = op(feature[row : row + 1], 100, permutation)
        assert torch.equal(mask[row], alone_mask[0]) and torch.equal(columns[row], alone_columns[0])


def test_overlap_does_not_depend_on_the_permutation(op, backend):
    feature = torch.randn(4, 500).to(backend.device)
    overlaps = []
    for _ in range(2):
        mask, _ = op(feature, 150, permutation_of(500, backend.device))
        overlaps.append(mask_overlap(mask.cpu(), mask.cpu()) if backend.device == "cpu" else mask_overlap(mask, mask))
    assert torch.equal(*overlaps)
    assert overlaps[0].diagonal().tolist() == [150] * 4


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_not_finite(op, backend, value):
    feature, permutation = torch.randn(3, 200).to(backend.device), permutation_of(200, backend.device)
    expected, _ = op(feature, 50, permutation)
    feature[1, 199] = value
    with pytest.raises(ValueError, match="feature must be finite, row 1 holds NaN or infinity"):
        op(feature, 50, permutation)
    mask, columns = op(feature, 50, permutation, check=False)
    assert not mask[1].any() and (columns[1] == -1).all()
    assert torch.equal(mask[::2], expected[::2])
    assert (columns[::2] >= 0).all()


def test_same_call_same_bits(op, backend):
    feature = torch.randint(-9, 9, (7, 2000)).float().to(backend.device)
    permutation = permutation_of(2000, backend.device)
    first = op(feature, 571, permutation)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            again = op(feature, 571, permutation)
        finally:
            torch.set_num_threads(1)
        assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"feature": torch.zeros(2, 8).half()}, TypeError, "feature must be float32 [B, D], got float16 [2, 8]"),
        ({"feature": torch.zeros(8)}, ValueError, "feature must be float32 [B, D], got float32 [8]"),
        ({"feature": torch.zeros(2, 0)}, ValueError, "D must lie in [1, 65536], got 0"),
        ({"feature": torch.zeros(1, 65537)}, ValueError, "D must lie in [1, 65536], got 65537"),
        ({"k": 0}, ValueError, "k must lie in [1, D = 8], got 0"),
        ({"k": 9}, ValueError, "k must lie in [1, D = 8], got 9"),
        ({"k": -1}, ValueError, "k must lie in [1, D = 8], got -1"),
        ({"permutation": torch.arange(8)}, TypeError, "permutation must be int32 [8], got int64 [8]"),
        ({"permutation": torch.arange(7).int()}, ValueError, "permutation must be int32 [8], got int32 [7]"),
        (
            {"permutation": torch.arange(1, 9).int()},
            ValueError,
            "permutation must lie in [0, 8), got values from 1 to 8",
        ),
    ],
)
def test_errors(change, error, message):
    arguments = {"feature": torch.randn(2, 8), "k": 3} | change
    width = arguments["feature"].shape[-1]
    arguments.setdefault("permutation", torch.arange(width).int())
    with pytest.raises(error) as caught:
        tophash(**arguments)
    assert str(caught.value) == message


def test_opcheck(opcheck, backend):
    permutation = permutation_of(100, backend.device)
    opcheck(OP, torch.randn(3, 100).to(backend.device), 30, permutation)
    opcheck(OP, torch.randn(100, 3).to(backend.device).T, 30, permutation)
    opcheck(OP, torch.randn(0, 100).to(backend.device), 30, permutation)


def test_compiles_whole(backend, same_compiled):
    same_compiled(torch.randn(2, 100).to(backend.device), 30, permutation_of(100, backend.device))


@pytest.mark.parametrize("width", [1, 31, 32, 33, 127, 128, 129, 1000])
def test_pack_and_unpack(width):
    bits = torch.rand(3, width) < 0.5
    packed = pack(bits)
    assert packed.shape == (3, words_of(width)) and packed.dtype == torch.int32
    assert torch.equal(unpack(packed, width), bits)
    assert unpack(packed, packed.shape[1] * 32)[:, width:].sum() == 0
