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
    text = bench("table").section({"cpu": ("cpu-2026-01-01.json", figures)})
    assert "| mask_match, 1 query, 7,000 edits | **2.34 ms** (1 ms hot), 91%; numpy 6.54x | not measured |" in text
    assert "| m: decode | 0.98x | >= 0.99x, missed |" in text
    assert "(bench/results/cpu-2026-01-01.json)" in text and "faiss" not in text


def test_newest_whole_run_counts(bench, figures, tmp_path):
    for name, date, more in (
        ("a", "2026-01-05", {"quick": True}),
        ("b", "2026-01-04", {"only": ["tophash"]}),
        ("c", "2026-01-02", {}),
        ("d", "2026-01-03", {}),
        ("e", "2026-01-01", {}),
    ):
        one = copy.deepcopy(figures) | more
        one["machine"]["date"] = date
        one["rows"][0]["seconds"]["cold"]["p50"] = int(date[-1]) * 1e-3
        (tmp_path / f"cpu-{name}.json").write_text(json.dumps(one))
    (tmp_path / "cpu-f.json.part").write_text("{")
    (tmp_path / "other.json").write_text("{}")
    runs = bench("table").newest(tmp_path)
    assert {device: name for device, (name, _) in runs.items()} == {"cpu": "cpu-d.json"}
    assert "**3 ms**" in bench("table").section(runs)


def test_row_that_could_not_be_timed_is_not_measured(bench, figures):
    figures["rows"][0] = {"bench": "mask_match", "case": "1 query, N=7,000, D=14336", "absent": "no memory"}
    text = bench("table").section({"cpu": ("x", figures)})
    assert "| mask_match, 1 query, 7,000 edits | not measured | not measured |" in text


def test_share_of_an_untrusted_ceiling_is_not_shown(bench, figures):
    for share in (None, 1.06):
        figures["rows"][0]["share_of_ceiling"] = share
        text = bench("table").section({"cpu": ("x", figures)})
        assert "(1 ms hot), ceiling not trusted; numpy 6.54x" in text and "%" not in text


def test_page_without_markers_is_refused(bench):
    with pytest.raises(ValueError, match="lacks"):
        bench("table").rewritten("no markers", {})


def test_plots_of_the_newest_results(bench, tmp_path):
    pytest.importorskip("matplotlib", reason="plots are drawn by matplotlib, the extra `plots`")
    for _, figures in bench("table").newest().values():
        files = bench("plot").draw(figures, tmp_path)
        assert len(files) == len(bench("plot").PLOTS) and all(file.read_text().startswith("<?xml") for file in files)
