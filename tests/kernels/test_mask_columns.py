"""The Triton kernel of `mask_columns` lists what the reference lists."""

import pytest
import torch
from memoir_fast.kernels.mask_columns import mask_columns

from memoir_fast.reference import mask_columns as reference


@pytest.mark.parametrize("seed", range(80))
def test_random_masks(draw, seed):
    rows, words = draw.pick(0, 1, 2, 5), 4 * draw.size(1, 60)
    mask = draw.masks(rows, words)
    if draw.chance(0.3):
        mask &= draw.masks(rows, words) & draw.masks(rows, words)
    if draw.chance(0.2):
        mask[: rows // 2] = draw.pick(0, -1)
    k = draw.pick(1, 32 * words, draw.size(1, 32 * words))
    assert torch.equal(mask_columns(draw.layout(mask), k), reference.mask_columns(mask, k))


def test_a_real_width(draw):
    mask = torch.cat([draw.masks(2, 448) & draw.masks(2, 448), torch.zeros_like(draw.masks(1, 448))])
    columns = mask_columns(mask, 4096)
    assert torch.equal(columns, reference.mask_columns(mask, 4096))
    assert (columns[2] == -1).all()
