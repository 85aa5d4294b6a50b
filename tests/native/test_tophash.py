"""tophash of the extension on the CPU, bit for bit against the reference."""

import pytest
import torch

from memoir_fast.reference.tophash import tophash


def assert_same(raw, feature, k, permutation) -> None:
    mask, columns = raw.tophash(feature, k, permutation)
    expected_mask, expected_columns = tophash(feature, k, permutation)
    assert torch.equal(mask, expected_mask)
    assert torch.equal(columns, expected_columns)


@pytest.mark.parametrize("width", [1, 2, 31, 32, 33, 127, 129, 1000, 1536, 14336, 18944, 65536])
@pytest.mark.usefixtures("poison")
def test_widths(raw, width):
    permutation = torch.randperm(width).int()
    for k in {1, min(2, width), -(-width // 3), max(1, width - 1), width}:
        assert_same(raw, torch.randn(2, width), k, permutation)


FEATURES = {
    "bfloat16": lambda shape: torch.randn(shape).bfloat16().float(),
    "few values": lambda shape: torch.randint(-2, 3, shape).float(),
    "constant": lambda shape: torch.full(shape, -3.25),
    "zeros": lambda shape: torch.where(torch.rand(shape) < 0.5, 0.0, -0.0),
    "mostly zeros": lambda shape: torch.randn(shape).relu() * (torch.rand(shape) < 0.1),
    "subnormal": lambda shape: torch.randint(-50, 50, shape).float() * 1e-45,
    "wide range": lambda shape: torch.exp(torch.randn(shape) * 20).clamp(max=3e38),
    "largest": lambda shape: torch.full(shape, torch.finfo(torch.float32).max),
    "ascending": lambda shape: torch.arange(shape[1]).float().expand(shape),
}


@pytest.mark.parametrize("name", FEATURES)
def test_ties_and_extremes(raw, threads, name):
    feature = FEATURES[name]((3, 1537))
    permutation = torch.randperm(1537).int()
    for k in (1, 440, 1000, 1537):
        assert_same(raw, feature, k, permutation)


def test_lower_index_wins_a_tie(raw):
    mask, columns = raw.tophash(torch.ones(1, 8), 3, torch.arange(8).int())
    assert (columns.tolist(), mask.tolist()) == ([[0, 1, 2]], [[7, 0, 0, 0]])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_row_that_is_not_finite_matches_nothing(raw, bad):
    feature = torch.randn(3, 300)
    feature[1, 299] = bad
    mask, columns = raw.tophash(feature, 100, torch.randperm(300).int())
    assert not mask[1].any() and (columns[1] == -1).all()
    assert_same(raw, feature, 100, torch.randperm(300).int())


def test_views_and_empty_batch(raw):
    permutation = torch.randperm(300).int()
    assert_same(raw, torch.randn(300, 4).t(), 100, permutation)
    assert_same(raw, torch.randn(8, 400)[::2, 50:350], 100, permutation)
    assert_same(raw, torch.randn(1, 300).expand(3, -1), 100, permutation)
    assert_same(raw, torch.randn(2, 300), 7, torch.randperm(300).int().repeat_interleave(2)[::2])
    assert [tuple(t.shape) for t in raw.tophash(torch.empty(0, 300), 7, permutation)] == [(0, 12), (0, 7)]
