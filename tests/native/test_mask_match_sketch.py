"""The sketch scan: exact in what it reports, and missing as often as it says."""

import pytest
import torch

from memoir_fast.mask_format import pack
from memoir_fast.ops.mask_match import mask_match, mask_match_sketch, miss_probability


def count_of(number: int) -> torch.Tensor:
    return torch.tensor(number, dtype=torch.int32)


def random_masks(rows: int, width: int, k: int) -> torch.Tensor:
    return pack(torch.rand(rows, width).argsort(dim=1).argsort(dim=1) < k)


@pytest.mark.parametrize("count", [0, 1, 50, 300, 399, 400])
def test_finds_what_stands_out(count):
    store = random_masks(400, 3000, 900)
    query = torch.stack([store[0], store[299], store[399], store[7] & store[8]])
    edit, overlap = mask_match_sketch(query, store, count_of(count), 500, tiles=1, candidates=60)
    exact_edit, exact_overlap = mask_match(query, store, count_of(count), 500)
    strong = exact_overlap >= 500  # the others share what chance gives, and any of them may win the sample
    assert torch.equal(edit, exact_edit)
    assert torch.equal(overlap[strong], exact_overlap[strong])
    assert (overlap <= exact_overlap).all()


def test_candidates_bring_their_own_thresholds():
    store = random_masks(400, 3000, 900)
    least = torch.full((400,), 500, dtype=torch.int32)
    least[7], least[9] = 901, 900
    query = store[[7, 9, 11]]
    edit, overlap = mask_match_sketch(query, store, count_of(400), least, tiles=1, candidates=60)
    assert edit.tolist() == [-1, 9, 11] and overlap.tolist() == [900] * 3


def test_lowest_row_wins_a_tie():
    store = random_masks(1, 4096, 1000).repeat(500, 1)
    edit, overlap = mask_match_sketch(store[:1], store, count_of(500), 1, tiles=1, candidates=3)
    assert (edit.item(), overlap.item()) == (0, 1000)


def test_small_store_and_whole_mask_are_exact():
    store = random_masks(40, 2048, 600)
    for tiles, candidates in ((1, 40), (2, 1), (9, 1)):
        result = mask_match_sketch(store[5:9], store, count_of(40), 1, tiles=tiles, candidates=candidates)
        assert all(
            torch.equal(a, b) for a, b in zip(result, mask_match(store[5:9], store, count_of(40), 1), strict=True)
        )


@pytest.mark.parametrize(("tiles", "candidates"), [(0, 1), (1, 0), (-1, 5)])
def test_wrong_settings_raise(tiles, candidates):
    with pytest.raises(ValueError, match="at least 1"):
        mask_match_sketch(
            torch.zeros(1, 4).int(), torch.zeros(9, 4).int(), count_of(9), 1, tiles=tiles, candidates=candidates
        )


@pytest.mark.parametrize("ratio", [0.36, 0.40, 0.44])
def test_miss_probability_agrees_with_simulation(ratio):
    """600 queries against 1,000 random masks, one of which shares `ratio` of its bits with the query."""
    width, k, rows, candidates, trials = 4096, 1200, 1000, 10, 600
    store = random_masks(rows, width, k)
    order = torch.rand(trials, width).argsort(dim=1)
    inside = torch.zeros(trials, width, dtype=torch.bool)
    shared = round(ratio * k)
    target = torch.arange(trials) % rows
    bits = (store[target][..., None] >> torch.arange(32, dtype=torch.int32) & 1).flatten(1).bool()
    for trial in range(trials):  # `shared` bits of the target's, the rest of the query's outside of it
        own, other = order[trial][bits[trial][order[trial]]], order[trial][~bits[trial][order[trial]]]
        inside[trial, own[:shared]] = True
        inside[trial, other[: k - shared]] = True
    query = pack(inside)
    exact, _ = mask_match(query, store, count_of(rows), 1)
    found, _ = mask_match_sketch(query, store, count_of(rows), 1, tiles=1, candidates=candidates)
    seen = (exact == target) & (found != target)
    expected = miss_probability(width, k, shared, rows, tiles=1, candidates=candidates)
    missed = seen.double().sum() / (exact == target).sum()
    assert abs(missed - expected) < 0.05 + 3 * (expected * (1 - expected) / trials) ** 0.5


def test_miss_probability_of_the_published_overlaps():
    """Rephrases share at least .465 of their bits, irrelevant prompts about .30: four of fourteen tiles are enough."""
    shape = {"width": 14336, "k": 4096, "rows": 1_000_000, "base": 0.30}
    assert miss_probability(overlap=round(0.465 * 4096), **shape) < 1e-12
    weak = [miss_probability(overlap=round(ratio * 4096), **shape) for ratio in (0.30, 0.33, 0.36, 0.40)]
    assert weak == sorted(weak, reverse=True) and weak[0] > 0.9
    assert miss_probability(overlap=1, **{**shape, "rows": 1024}) == 0.0
