"""The Triton kernel of `tophash` gives the reference's bits."""

import pytest
import torch
from memoir_fast.kernels.tophash import tophash

from memoir_fast.reference import tophash as reference


def _feature(draw, rows: int, width: int) -> torch.Tensor:
    """Rows of one of the kinds that selection gets wrong."""
    kind = draw.pick("normal", "bfloat16", "few values", "equal", "zeros", "denormal", "one", "outliers", "signs")
    feature = draw.normal(rows, width)
    if kind == "bfloat16":
        return feature.bfloat16().float()
    if kind == "few values":
        return draw.integers(-2, 3, rows, width).float()
    if kind == "equal":
        return torch.full_like(feature, -0.75)
    if kind == "zeros":
        return torch.where(draw.uniform(rows, width) < 0.7, -0.0, feature)
    if kind == "denormal":
        return feature * 1e-41
    if kind == "one":
        return torch.zeros_like(feature).index_fill_(1, draw.integers(0, width, 1).long(), 3.0)
    if kind == "outliers":
        return torch.where(draw.uniform(rows, width) < 0.05, feature * 1e37, feature * 1e-6)
    if kind == "signs":
        return draw.integers(0, 2, rows, width).float() * 2 - 1
    return feature


def _assert_equal(feature: torch.Tensor, k: int, permutation: torch.Tensor) -> None:
    mask, columns = tophash(feature, k, permutation)
    expected_mask, expected_columns = reference.tophash(feature, k, permutation)
    assert torch.equal(columns, expected_columns)
    assert torch.equal(mask, expected_mask)
    assert mask.is_contiguous() and columns.is_contiguous()


@pytest.mark.parametrize("seed", range(80))
def test_random_features(draw, seed):
    width = draw.pick(1, 31, 32, 33, 63, 65, 127, 128, 129, draw.size(1, 400))
    rows = draw.pick(0, 1, 1, 2, 9)  # from 9 on, columns fetch their flags instead of being flagged
    k = draw.pick(1, width, max(1, width // 4), draw.size(1, width))
    _assert_equal(draw.layout(_feature(draw, rows, width)), k, draw.layout(draw.permutation(width)))


@pytest.mark.parametrize(
    ("width", "k"),
    [(14336, 4096), (1000, 1000), (1536, 440), (18944, 5000), (16385, 1), (65536, 65536), (65536, 20000)],
)
def test_sizes_of_real_layers(draw, width, k):
    _assert_equal(draw.normal(1, width), k, draw.permutation(width))


def test_many_rows_of_a_real_size(draw):
    rows = draw.normal(9, 1536)
    rows[3], rows[5, 7] = rows[3].bfloat16().float().round(), float("nan")
    _assert_equal(draw.layout(rows), 440, draw.layout(draw.permutation(1536)))
    _assert_equal(draw.normal(9, 16384).round(decimals=2), 4096, draw.permutation(16384))


def test_ties_at_a_real_size_go_to_the_lower_index(draw):
    for width, k in ((14336, 4096), (18944, 4096)):
        _assert_equal(draw.normal(1, width).bfloat16().float(), k, draw.permutation(width))


@pytest.mark.parametrize(
    ("value", "width"), [(float("nan"), 70), (float("inf"), 70), (-float("inf"), 70), (float("nan"), 16500)]
)
def test_a_row_that_is_not_finite_is_empty_and_leaves_the_others_alone(draw, value, width):
    feature = draw.normal(3, width)
    feature[1, draw.size(0, width - 1)] = value
    _assert_equal(feature, 5, draw.permutation(width))
    assert bool((tophash(feature, 5, draw.permutation(width))[1][1] == -1).all())


@pytest.mark.parametrize("rows", [2, 9])
def test_a_permutation_out_of_range_never_writes_outside(draw, rows):
    feature, permutation = draw.normal(rows, 100), draw.permutation(100)
    wrong = torch.where(permutation % 5 == 0, permutation + 10**6, permutation).where(permutation % 7 > 0, -3)
    mask, _ = tophash(feature, 100, wrong)
    expected = permutation[(permutation % 5 > 0) & (permutation % 7 > 0)].long()
    bits = torch.zeros((rows, 100), dtype=torch.bool, device=draw.device)
    bits[:, expected] = True
    assert torch.equal(mask, reference.pack(bits))


def test_the_same_call_gives_the_same_bits(draw):
    feature, permutation = _feature(draw, 2, 500), draw.permutation(500)
    first, second = tophash(feature, 77, permutation), tophash(feature, 77, permutation)
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
