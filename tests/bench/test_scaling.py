"""The formulas beside which growth is measured."""

import math

import pytest
import torch


@pytest.fixture
def chance(bench):
    return bench("chance")


def test_best_of_one_is_binomial(chance):
    below = chance.best_below(10, 0.25, 1)
    exact = [sum(math.comb(10, x) * 0.25**x * 0.75 ** (10 - x) for x in range(t)) for t in range(12)]
    torch.testing.assert_close(below, torch.tensor(exact, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_more_stored_masks_match_more_often(chance):
    """Against simulation: 20,000 searches of 128 bits among 50 masks."""
    k, stored, prompts = 128, 50, 20_000
    shared = torch.distributions.Binomial(k, torch.tensor(0.25)).sample((prompts, stored)).amax(dim=1)
    below = chance.best_below(k, 0.25, stored)
    for least in (42, 46, 50):
        expected = 1 - float(below[least])
        assert float((shared >= least).double().mean()) == pytest.approx(expected, abs=4 * (expected / prompts) ** 0.5)


@pytest.mark.parametrize("stored", [1_000, 1_000_000])
def test_threshold_is_the_least_for_its_rate(chance, stored):
    below = chance.best_below(4096, 0.25, stored)
    bits = chance.threshold(below, 1e-3)
    assert 1 - below[bits] <= 1e-3 < 1 - below[bits - 1]
    assert chance.location(below) < bits


def test_far_tail_is_not_lost(chance):
    """At tau = .5 random masks never match: the probability is tiny, and is no rounding error."""
    below = chance.best_below(4096, 0.25, 1_000_000)
    assert below[2048] == 1.0 and below[0] == 0.0 and bool((below.diff() >= 0).all())


def test_measured_false_matches_are_those_of_the_formula(bench):
    scaling, shapes = bench("bench_scaling"), bench("shapes")
    found = scaling.false_matches(1_000, shapes.SMOLLM)
    expected = found["false_match_rate_formula"]
    assert 0.03 < expected <= scaling.RATE
    noise = (expected / scaling.PROMPTS) ** 0.5
    assert found["false_match_rate"] == pytest.approx(expected, abs=5 * noise)
    assert found["best_overlap"] == pytest.approx(found["best_overlap_formula"], rel=0.02)


def test_sizes_are_those_of_the_formula(bench):
    scaling, shapes = bench("bench_scaling"), bench("shapes")
    found = scaling.sizes(300, shapes.SMOLLM)
    assert found["store_bytes"] == found["store_bytes_formula"] >= 300 * (192 + 16)
    assert found["saved_tensor_bytes"] == pytest.approx(found["saved_tensor_bytes_formula"], abs=1024)


def test_memory_that_does_not_fit_says_so(bench, timer, monkeypatch):
    scaling = bench("bench_scaling")
    monkeypatch.setattr(scaling, "free_bytes", lambda _: 1000)
    monkeypatch.setattr(scaling, "sweep", lambda: iter(()))
    monkeypatch.setattr(scaling, "STORED", (1_000,))
    row, _ = scaling.rows(bench("cases").Settings(), timer)
    assert "needs" in row["absent"] and "figures" not in row
