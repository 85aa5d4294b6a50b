"""The README's performance section is what the result files say."""

import copy
import json

import pytest


def test_readme_agrees_with_the_result_files(bench):
    assert bench("table").main(["--check"]) == 0


def test_unmeasured_says_so(bench):
    text = bench("table").section({})
    table = [line for line in text.splitlines() if line.startswith("| mask_match")]
    assert table and all(line.endswith("| not measured |") for line in table)


@pytest.fixture
def figures():
    spread = {"p20": 1e-3, "p50": 2.34e-3, "p80": 3e-3, "samples": 9}
    row = {
        "bench": "mask_match",
        "case": "1 query, N=7,000, D=14336",
        "parameters": {},
        "headline": "cold",
        "seconds": {"cold": spread, "hot": {**spread, "p50": 1e-3}},
        "share_of_ceiling": 0.91,
        "peers": {"numpy": {"ratio": 6.54321}, "faiss": {"absent": "no"}},
    }
    machine = {
        "device": "cpu",
        "processor": {"name": "a processor", "cores": 2},
        "threads": 1,
        "load": 0.1,
        "packages": {"torch": "2"},
        "date": "2026-01-01 00:00 UTC",
    }
    target = {"what": "decode", "value": 0.98, "least": 0.99}
    whole = {"bench": "generate", "case": "m", "parameters": {}, "figures": {}, "targets": [target]}
    return {"machine": machine, "rows": [row, whole]}


def test_measured_is_shown_with_its_source(bench, figures):
    text = bench("table").section({"cpu": {"x": ("cpu-2026-01-01.json", figures)}})
    assert "| mask_match, 1 query, 7,000 edits | **2.34 ms** (1 ms hot), 91%; numpy 6.54x | not measured |" in text
    assert "| m: decode | 0.98x | >= 0.99x, missed |" in text
    assert "(bench/results/cpu-2026-01-01.json)" in text and "faiss" not in text


def test_newest_run_that_has_a_row_counts(bench, figures, tmp_path):
    for name, date, quick in (("a", "2026-01-04", True), ("b", "2026-01-02", False), ("c", "2026-01-01", False)):
        one = copy.deepcopy(figures) | {"quick": quick}
        one["machine"]["date"] = date
        one["rows"][0]["seconds"]["cold"]["p50"] = int(date[-1]) * 1e-3
        (tmp_path / f"cpu-{name}.json").write_text(json.dumps(one))
    part = copy.deepcopy(figures) | {"rows": []}
    part["machine"]["date"] = "2026-01-03"
    (tmp_path / "cpu-d.json").write_text(json.dumps(part))
    part["machine"] |= {"date": "2025-12-31", "processor": {"name": "another"}}
    (tmp_path / "cpu-e.json").write_text(json.dumps(part))
    (tmp_path / "other.json").write_text("{}")
    runs = bench("table").newest(tmp_path)
    assert list(runs["cpu"]) == ["cpu-d.json", "cpu-b.json", "cpu-c.json"]
    assert "**2 ms**" in bench("table").section(runs)


def test_page_without_markers_is_refused(bench):
    with pytest.raises(ValueError, match="lacks"):
        bench("table").rewritten("no markers", {})


def test_plots_of_the_newest_results(bench, tmp_path):
    pytest.importorskip("matplotlib", reason="plots are drawn by matplotlib, the extra `plots`")
    for runs in bench("table").newest().values():
        files = bench("plot").draw(bench("table").merged(runs), tmp_path)
        assert len(files) == 4 and all(file.read_text().startswith("<?xml") for file in files)
