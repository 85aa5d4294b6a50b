"""The Triton kernels of `mask_match` choose the reference's edit."""

import json

import pytest
import torch
from memoir_fast.kernels import _launch
from memoir_fast.kernels.mask_match import mask_match

from memoir_fast.reference import mask_match as reference
from memoir_fast.reference.mask_overlap import mask_overlap


def _assert_equal(draw, query, store, count, least) -> None:
    count = torch.tensor(count, dtype=torch.int32, device=draw.device)
    if isinstance(least, int):
        least = torch.full((len(store),), least, dtype=torch.int32, device=draw.device)
    expected = reference.mask_match(query, store, count, least)
    actual = mask_match(draw.layout(query), draw.layout(store), count, least)
    assert all(torch.equal(*pair) for pair in zip(actual, expected, strict=True))


@pytest.mark.parametrize("seed", range(80))
def test_random_stores(draw, seed):
    queries, words = draw.pick(0, 1, 2), 4 * draw.size(1, 20)
    capacity = draw.pick(0, 1, 31, 33, draw.size(1, 90))
    query, store = draw.masks(queries, words), draw.masks(capacity, words)
    if capacity > 3:
        store[draw.size(0, capacity - 1)] = store[draw.size(0, capacity - 1)]  # ties between rows
        store[draw.size(0, capacity - 1)] = 0  # a deleted edit
    if draw.chance(0.3):
        query &= 0 if draw.chance(0.3) else 5
    count = draw.pick(0, capacity, draw.size(0, capacity), capacity + 7, -3)
    least = draw.pick(1, 8 * words, 8 * words + 10, 32 * words)
    if queries and draw.chance(0.5):  # each row just reaches its threshold, or lacks a bit of it
        least = mask_overlap(query, store)[0] + draw.integers(0, 2, capacity)
    elif draw.chance(0.5):
        least = torch.randint(-2, max(1, 2 * least), (capacity,), dtype=torch.int32, device=draw.device)
    _assert_equal(draw, query, store, count, least)


def test_every_row_alike_goes_to_the_lowest(draw):
    query = draw.masks(1, 8)
    count, least = torch.tensor(200, dtype=torch.int32, device=draw.device), torch.ones_like(query[0, :1]).expand(200)
    edit, _ = mask_match(query, query.expand(200, 8), count, least)
    assert edit.item() == 0


def test_programs_that_walk_over_several_tiles(draw, tmp_path, monkeypatch):
    table = {"*": {"mask_match": {"*": {"PROGRAMS": 3, "BLOCK_N": 4}}}}
    (tmp_path / "table.json").write_text(json.dumps(table))
    monkeypatch.setenv("MEMOIR_FAST_LAUNCH_TABLE", str(tmp_path / "table.json"))
    _launch.forget()
    try:
        for count in (0, 1, 11, 12, 13, 50):
            _assert_equal(draw, draw.masks(2, 12), draw.masks(50, 12), count, 1)
    finally:
        monkeypatch.undo()
        _launch.forget()
