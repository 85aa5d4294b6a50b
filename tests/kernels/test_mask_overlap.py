"""The Triton kernel of `mask_overlap` counts as the reference does."""

import pytest
import torch
from memoir_fast.kernels.mask_overlap import mask_overlap

from memoir_fast.reference import mask_overlap as reference


@pytest.mark.parametrize("seed", range(80))
def test_random_masks(draw, seed):
    queries, edits, words = draw.pick(0, 1, 2, 3), draw.pick(0, 1, 31, 33, draw.size(1, 90)), 4 * draw.size(1, 40)
    query, store = draw.masks(queries, words), draw.masks(edits, words)
    actual = mask_overlap(draw.layout(query), draw.layout(store))
    assert torch.equal(actual, reference.mask_overlap(query, store))


def test_full_and_empty_masks_at_a_real_width(draw):
    query = torch.full((1, 448), -1, dtype=torch.int32, device=draw.device)
    store = torch.cat([query, torch.zeros_like(query), draw.masks(40, 448)])
    overlap = mask_overlap(query, store)
    assert overlap[0, :2].tolist() == [14336, 0]
    assert torch.equal(overlap, reference.mask_overlap(query, store))
