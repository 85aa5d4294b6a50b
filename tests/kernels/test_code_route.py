"""The Triton kernel of `code_route` tells what the reference tells."""

import pytest
import torch
from memoir_fast.kernels.code_route import code_route

from memoir_fast.reference import code_route as reference


@pytest.mark.parametrize("seed", range(30))
def test_random_codes(draw, seed):
    prompts, codes, stored = draw.pick(0, 1, 3, 129, 300), draw.size(1, 9), draw.size(1, 12)
    row = draw.integers(-1, stored, prompts, codes)
    if draw.chance(0.2):
        row.fill_(-1)
    overlap = draw.integers(0, draw.pick(2, 441), prompts, codes)
    given = row, overlap, draw.integers(0, 99, stored), draw.integers(-1, 3, stored)
    expected = reference.code_route(*given)
    for one, other in zip(code_route(*map(draw.layout, given)), expected, strict=True):
        assert torch.equal(one, other)


def test_a_row_past_the_store_is_of_no_edit(draw):
    row, overlap = torch.tensor([[0, 3], [2**31 - 1, 0], [1, -1]]).int(), torch.tensor([[5, 6], [5, 5], [5, 9]]).int()
    ones = torch.ones(3).int().to(draw.device)
    route, best = code_route(row.to(draw.device), overlap.to(draw.device), ones, ones)
    assert route.tolist() == [-1, -1, 1] and best.tolist() == [6, 5, 5]
