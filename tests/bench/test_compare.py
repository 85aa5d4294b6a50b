"""compare.py: a planted slow-down fails, noise does not."""

import copy
import json

import pytest

MACHINE = {"device": "cpu", "threads": 1, "processor": {"name": "p"}, "gpu": {"devices": []}}


@pytest.fixture
def result():
    spread = {"p20": 0.9e-3, "p50": 1e-3, "p80": 1.1e-3, "samples": 9}
    rows = [
        {
            "bench": bench,
            "case": "one",
            "parameters": {},
            "headline": "cold",
            "seconds": {"cold": spread, "hot": spread},
            "peers": {"torch": {"ratio": 3.0}, "numpy": {"ratio": 5.0}, "faiss": {"absent": "not installed"}},
        }
        for bench in ("tophash", "mask_match")
    ]
    return {"machine": MACHINE, "rows": rows}


@pytest.fixture
def compare(bench, tmp_path):
    def run(before, after, *options):
        files = tmp_path / "before.json", tmp_path / "after.json"
        for path, figures in zip(files, (before, after), strict=True):
            path.write_text(json.dumps(figures))
        return bench("compare").main([*map(str, files), *options])

    return run


def slowed(result, factor):
    later = copy.deepcopy(result)
    row = later["rows"][1]
    row["seconds"] = {mode: {**spread, "p50": spread["p50"] * factor} for mode, spread in row["seconds"].items()}
    for seen in row["peers"].values():
        if "ratio" in seen:
            seen["ratio"] /= factor
    return later


@pytest.mark.parametrize("by", ["time", "peers"])
def test_slow_down_of_a_fifth_fails(compare, result, by, capsys):
    assert compare(result, slowed(result, 1.2), "--by", by) == 1
    assert "SLOWER mask_match" in capsys.readouterr().out


@pytest.mark.parametrize("factor", [1.0, 1.1, 0.5])
def test_noise_and_speed_pass(compare, result, factor):
    assert compare(result, slowed(result, factor)) == 0


def test_threshold_is_the_callers(compare, result):
    assert compare(result, slowed(result, 1.1), "--threshold", "0.05") == 1


def test_busy_machine_cancels_out_by_peers(compare, result):
    later = copy.deepcopy(result)
    for row in later["rows"]:
        row["seconds"]["cold"] = {**row["seconds"]["cold"], "p50": 2e-3}  # everything slower, ratios as before
    assert compare(result, later) == 1
    assert compare(result, later, "--by", "peers") == 0


@pytest.mark.parametrize("outcome", [{"failed": "wrong"}, {"absent": "gone"}])
def test_wrong_or_missing_row_fails(compare, result, outcome):
    later = copy.deepcopy(result)
    later["rows"][0] = {"bench": "tophash", "case": "one", "parameters": {}, **outcome}
    assert compare(result, later) == 1
    later["rows"] = later["rows"][1:]
    assert compare(result, later) == 1


def test_other_machine_or_no_result_is_no_comparison(compare, result, capsys):
    other = copy.deepcopy(result)
    other["machine"]["processor"]["name"] = "q"
    assert compare(result, other) == 2
    assert compare({"rows": []}, result) == 2
    assert compare({**result, "rows": []}, result) == 2
    assert "no timed row" in capsys.readouterr().out


def test_measured_slow_down_fails(bench, doubling, timer, compare):
    """End to end: a kernel that really takes longer."""
    cases = bench("cases")
    settings = cases.Settings(seconds=0.02)
    runs = [
        {"machine": MACHINE, "rows": list(cases.rows_of([doubling(sleep=sleep)], settings, timer))}
        for sleep in (0.03, 0.06)  # long beside what a busy machine adds
    ]
    assert compare(*runs) == 1
    assert compare(runs[0], runs[0]) == 0
