"""The Triton kernel of `route_rows` lists what the reference lists."""

import pytest
import torch
from memoir_fast.kernels.route_rows import route_rows

from memoir_fast.reference import route_rows as reference


@pytest.mark.parametrize("seed", range(60))
def test_random_routes(draw, seed):
    edits, batch, words = draw.size(1, 6), draw.pick(0, 1, 2, 5), 4 * draw.size(1, 40)
    mask, page = draw.masks(edits, words), draw.integers(0, 4, edits)
    route = draw.integers(-1, edits, batch)
    if draw.chance(0.3):
        mask[0] = draw.pick(0, -1)
    k = draw.pick(1, 32 * words, draw.size(1, 32 * words))
    given = mask, page, route, k, 32 * words
    expected = reference.route_rows(*given)
    for one, other in zip(route_rows(draw.layout(mask), *given[1:]), expected, strict=True):
        assert torch.equal(one, other)


def test_many_that_follow_the_same(draw):
    mask, page, route = draw.masks(3, 4), draw.integers(0, 4, 3), draw.integers(-1, 3, 140)
    expected = reference.route_rows(mask, page, route, 6, 128)
    for one, other in zip(route_rows(mask, page, route, 6, 128), expected, strict=True):
        assert torch.equal(one, other)


def test_a_route_past_the_store_reads_nothing(draw):
    mask, page = draw.masks(3, 4), draw.integers(1, 2, 3)
    route = torch.tensor([3, 0, 2**31 - 1]).int().to(mask.device)
    rows, first = route_rows(mask, page, route, 5, 128)
    assert first.tolist() == [-1, 1, -1]
    assert (rows[[0, 2]] == -1).all() and (rows[1] > 0).all()
