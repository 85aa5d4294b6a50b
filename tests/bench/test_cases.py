"""What a benchmark promises: no time without a right result, peers that say why they are absent, true percentiles."""

import dataclasses

import pytest
import torch

from memoir_fast import backends, native


@pytest.fixture
def settings(bench):
    return bench("cases").Settings(quick=True, compile=False, seconds=0.005)


def test_right_case_has_times_and_figures(bench, doubling, timer, settings):
    (row,) = bench("cases").rows_of([doubling()], settings, timer)
    assert set(row["seconds"]) == {"cold", "hot"}
    for spread in row["seconds"].values():
        assert 0 < spread["p20"] <= spread["p50"] <= spread["p80"] and spread["samples"] >= 5
    own, best = row["seconds"]["cold"]["p50"], row["seconds"]["cold"]["best"]
    assert 0 < best <= row["seconds"]["cold"]["p20"]
    assert row["bytes_per_second"] == pytest.approx(8000 / own)
    assert row["share_of_ceiling"] == pytest.approx(8000 / best / row["ceiling_bytes_per_second"])
    assert row["ceiling"] == "copy" and row["ceiling_trusted"]
    assert row["times_floor"] == pytest.approx(own / (8000 / row["ceiling_bytes_per_second"]))
    assert row["ceilings"]["cold"]["bytes"] == timer.cold_bytes and row["ceilings"]["hot"]["bytes"] == 8000
    assert all(ceiling["kernel"] and ceiling["blocks"] >= 2 for ceiling in row["ceilings"].values())


def test_a_row_of_the_extension_says_which_way_served(bench, timer, settings):
    """Of eight megabytes searched again and again the first calls find out the quickest way."""
    if isinstance(reason := backends.load("mask_match", "cpu"), str):
        pytest.skip(reason)
    shapes, search = bench("shapes"), bench("bench_mask_match")
    case = bench("cases").Case("mask_match", "1 query", {}, lambda asked: search.make(shapes.LLAMA, 1, 5_000, asked))
    (row,) = bench("cases").rows_of([case], dataclasses.replace(settings, peers=False, seconds=0.3), timer)
    assert row["backend"] == "cpu"
    (served,) = [way for what, way in row["ways"].items() if what.startswith("search for one query in a cache")]
    assert served.split()[0] in native.extension().cpu_features()


def test_wrong_kernel_gets_no_time(bench, doubling, timer, settings):
    (row,) = bench("cases").rows_of([doubling(off=0.01)], settings, timer)
    assert "relative error" in row["failed"]
    assert "seconds" not in row and "peers" not in row


def test_nan_is_wrong(bench, doubling, timer, settings):
    (row,) = bench("cases").rows_of([doubling(off=float("nan"))], settings, timer)
    assert "failed" in row and "seconds" not in row


def test_unwritten_output_is_seen(bench, doubling, timer, settings):
    """A kernel that leaves its output as it was: memory is poisoned while the result is checked."""
    case = doubling()
    prepared = dataclasses.replace(case.make(settings), run=lambda x: torch.empty_like(x))
    (row,) = bench("cases").rows_of([dataclasses.replace(case, make=lambda _: prepared)], settings, timer)
    assert "failed" in row and "seconds" not in row


def test_result_that_is_right_by_luck_is_seen(bench, doubling, timer, settings):
    """A kernel that leaves what was in its output where that is no NaN would pass over memory that is not poisoned."""
    case = doubling()
    prepared = dataclasses.replace(
        case.make(settings), run=lambda x: torch.where(torch.empty_like(x).isnan(), torch.nan, 2 * x)
    )
    (row,) = bench("cases").rows_of([dataclasses.replace(case, make=lambda _: prepared)], settings, timer)
    assert "failed" in row and "seconds" not in row


def test_a_case_that_raises_does_not_stop_the_next(bench, doubling, timer, settings):
    def broken(_):
        raise RuntimeError("no such thing")

    case = doubling()
    first, second = bench("cases").rows_of([dataclasses.replace(case, make=broken), case], settings, timer)
    assert first["failed"] == "RuntimeError: no such thing" and "seconds" in second


def test_peers_are_checked_too(bench, doubling, timer, settings):
    (row,) = bench("cases").rows_of([doubling()], settings, timer)
    peers = row["peers"]
    assert peers["right"]["ratio"] > 0 and set(peers["right"]["seconds"]) == {"cold", "hot"}
    assert peers["wrong"]["absent"].startswith("wrong result")
    assert "no_such_method" in peers["dies"]["absent"]
    assert peers["none"] == {"absent": "not here"}


def test_more_memory_than_there_is(bench, doubling, timer, settings):
    case = dataclasses.replace(doubling(), needs_bytes=1 << 60)
    (row,) = bench("cases").rows_of([case], settings, timer)
    assert "GB of memory" in row["absent"] and "seconds" not in row


def test_spread_is_by_nearest_sample(bench):
    measure = bench("measure")
    assert measure.spread([5.0, 1.0, 2.0, 3.0, 4.0, 6.0]) == measure.Spread(2.0, 3.0, 5.0, 6, 1.0)
    assert measure.spread([7.0]) == measure.Spread(7.0, 7.0, 7.0, 1, 7.0)


def test_contenders_take_turns_and_slow_ones_sit_out(bench):
    order = []

    def sample(name, seconds):
        def take():
            order.append(name)
            end = measure.time.perf_counter() + seconds
            while measure.time.perf_counter() < end:
                pass
            return seconds

        return take

    measure = bench("measure")
    samples = measure.in_turns({"own": sample("own", 0.001), "slow": sample("slow", 0.02)}, seconds=0.005)
    assert order[:4] == ["own", "slow", "own", "slow"]
    assert len(samples["slow"]) == 2 and len(samples["own"]) >= measure.LEAST_ROUNDS
    assert measure.ratio(samples, "slow", "own") == pytest.approx(20)
    samples = measure.in_turns({"own": sample("own", 0.001), "slow": sample("slow", 0.06)}, seconds=0.005)
    assert len(samples["slow"]) == 1, "eight times its share in one call"


def test_slow_case_is_timed_once(bench, doubling, timer, settings, monkeypatch):
    """Where one call takes longer than the patience, there is a time and no second one, and nothing is timed hot."""
    monkeypatch.setattr(bench("measure"), "PATIENCE", 0.01)
    (row,) = bench("cases").rows_of([doubling(sleep=0.02)], settings, timer)
    assert set(row["seconds"]) == {"cold"} and row["seconds"]["cold"]["samples"] == 1
    assert row["peers"]["right"]["ratio"] < 1 and row["share_of_ceiling"] > 0


def test_cold_means_after_a_flush(bench, timer):
    """Each cold sample of the CPU timer calls once, with the buffer overwritten before."""
    calls = []

    def run(_):
        calls.append(int(timer._target[0]))
        timer._target[0] = 0

    samples = timer.cold({"own": run}, seconds=0.001)
    assert len(calls) == len(samples["own"]) and set(calls) == {1}


@pytest.mark.gpu
def test_cuda_modes(bench, doubling):
    cases, measure = bench("cases"), bench("measure")
    case = doubling()
    prepared = dataclasses.replace(case.make(None), draw=lambda: (torch.randn(1000, device="cuda"),))
    settings = cases.Settings(device="cuda", compile=False, seconds=0.01)
    (row,) = cases.rows_of([dataclasses.replace(case, make=lambda _: prepared)], settings, measure.CudaTimer())
    assert set(row["seconds"]) == {"cold", "hot", "graph cold", "graph hot"} and row["headline"] == "graph cold"
    assert row["input_sets"] > 1


def test_a_mode_that_the_op_lacks_is_not_compared(bench):
    """A graph of the peer alone: the op could not be captured."""
    cases, times = bench("cases"), [1e-3, 2e-3, 3e-3]
    modes = {"cold": ({cases.OWN: times, "peer": times}, None), "graph cold": ({"peer": times}, None)}
    row = cases._peer_row("peer", cases.Peer(print), modes, "cold")
    assert row["mode"] == "cold" and row["ratios"] == {"cold": 1.0}
