"""The tables of the README and of docs/performance.md are what the result files say, with one number per cell."""

import copy
import json
import re

import pytest


def test_pages_agree_with_the_result_files(bench):
    assert bench("table").main(["--check"]) == 0


def test_unmeasured_says_so(bench):
    table = bench("table")
    rows = [line for line in table.headline({}).splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 10 and all(line.endswith("| not measured | not measured |") for line in rows)
    assert table.section({}) == "No result file is in bench/results yet."


def test_every_row_of_the_headline_is_measured_by_something(bench):
    table = bench("table")
    assert {name for _, name in table.HEADLINE_TIMES} <= {label for label, _, _ in table.OPS}
    told = {what for _, figures in table.newest().values() for row in figures["rows"] for what in told_of(row)}
    assert {what for _, what in (*table.HEADLINE_SHARES, *table.HEADLINE_RATIOS)} <= told


def told_of(row):
    return {target["what"] for target in row.get("targets", ())}


def test_no_cell_holds_two_numbers(bench):
    table = bench("table")
    for text in (table.headline(table.newest()), table.section(table.newest())):
        for line in text.splitlines():
            for cell in line.split("|")[2:-1] if line.startswith("| ") else ():
                assert len(re.findall(r"\d[\d.,]*", re.sub(r"float16|H100|80GB|HBM3", "", cell))) <= 1, cell


@pytest.fixture
def figures(bench):
    spread = {"p20": 1e-3, "p50": 2.34e-3, "p80": 3e-3, "samples": 9}
    row = {
        "bench": "mask_match",
        "case": "1 query, N=7,000, D=14336",
        "parameters": {},
        "headline": "cold",
        "seconds": {"cold": spread, "hot": {**spread, "p50": 1e-3}},
        "share_of_ceiling": 0.91,
        "peers": {"numpy": {"ratio": 6.54321}, "faiss": {"absent": "no"}},
        "sources": bench("sources").today("mask_match", "cpu"),
    }
    machine = {
        "device": "cpu",
        "processor": {"name": "a processor", "cores": 2},
        "threads": 1,
        "load": 0.1,
        "packages": {"torch": "2"},
        "date": "2026-01-01 00:00 UTC",
    }
    target = {"what": "decode, matched, share of unedited", "value": 0.98, "least": 0.99}
    whole = {"bench": "generate", "case": "m", "parameters": {}, "figures": {}, "targets": [target]}
    whole["sources"] = bench("sources").today("generate", "cpu")
    return {"machine": machine, "rows": [row, whole]}


def test_measured_is_shown_with_its_source(bench, figures):
    runs = {"cpu": ("cpu-2026-01-01.json", figures)}
    text = bench("table").section(runs)
    assert "| mask_match, 1 query, 7,000 edits | 2.34 ms | 1 ms | 91% | today's |" in text
    assert "| mask_match, 1 query, 7,000 edits | numpy | 6.54 | yes |" in text
    assert "| m: decode, matched, share of unedited | 0.98x | >= 0.99x | no | today's |" in text
    assert "(../bench/results/cpu-2026-01-01.json)" in text and "faiss" not in text
    short = bench("table").headline(runs)
    assert short.startswith("|  | a processor, 1 thread | GPU |")
    assert "| search of one prompt among 7,000 edits | 2.34 ms | not measured |" in short
    assert "one followed: share of the unedited speed | 98.0% | not measured |" in short and "\\*" not in short


def test_peer_that_computes_something_else_says_so(bench, figures):
    figures["rows"][0]["peers"]["numpy"]["same"] = False
    text = bench("table").section({"cpu": ("x", figures)})
    assert "| mask_match, 1 query, 7,000 edits | numpy | 6.54 | no |" in text


def test_figures_of_older_kernels_say_so(bench, figures):
    for row in figures["rows"]:
        row["sources"] = "0" * 12
    figures["note"] = "Of another day."
    runs = {"cpu": ("cpu-2026-01-01.json", figures)}
    text, short = bench("table").section(runs), bench("table").headline(runs)
    assert "| 2.34 ms | 1 ms | 91% | older than the kernel |" in text
    assert "| 0.98x | >= 0.99x | no | older than the kernel |" in text
    assert "(../bench/results/cpu-2026-01-01.json). Of another day.\n" in text
    assert "| search of one prompt among 7,000 edits | 2.34 ms \\* | not measured |" in short
    assert short.endswith("\\* of kernels that have changed since.")


def test_age_is_not_told_of_what_no_files_are_noted_for(bench, figures):
    figures["rows"][1] |= {"bench": "unheard of", "sources": None}
    assert "| 0.98x | >= 0.99x | no | - |" in bench("table").section({"cpu": ("x", figures)})


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
    assert "7,000 edits | 3 ms |" in bench("table").section(runs)


def test_row_that_could_not_be_timed_is_not_measured(bench, figures):
    figures["rows"][0] = {"bench": "mask_match", "case": "1 query, N=7,000, D=14336", "absent": "no memory"}
    text = bench("table").section({"cpu": ("x", figures)})
    assert "| mask_match, 1 query, 7,000 edits | not measured |  |  |  |" in text


def test_share_of_an_untrusted_ceiling_is_not_shown(bench, figures):
    for share in (None, 1.06):
        figures["rows"][0]["share_of_ceiling"] = share
        text = bench("table").section({"cpu": ("x", figures)})
        assert "| 2.34 ms | 1 ms | ceiling not trusted |" in text and "%" not in text


def test_growth_page_has_figures_beside_formulas(bench, figures):
    spread = {"p20": 1e-3, "p50": 2e-3, "p80": 3e-3, "samples": 9}
    timed = {
        "bench": "scaling",
        "case": "mask_match, N=1,000",
        "parameters": {"op": "mask_match", "N": 1000, "B": 1},
        "headline": "cold",
        "seconds": {"cold": spread, "hot": {**spread, "p50": 1.5e-3}},
        "floor_seconds": 1e-3,
        "bound": "bytes",
        "times_floor": 2.0,
        "share_of_ceiling": 0.5,
    }
    sizes = {
        "store_bytes": 2e6,
        "store_bytes_formula": 2e6,
        "saved_tensor_bytes": 1.1e6,
        "saved_tensor_bytes_formula": 1e6,
        "saved_text_bytes": 5e5,
    }
    chance = {
        "N": 1000,
        "threshold": 0.334,
        "false_match_rate": 0.042,
        "false_match_rate_formula": 0.0468,
        "best_overlap": 0.3144,
        "best_overlap_formula": 0.3153,
    }
    rows = figures["rows"] = [timed, dict(timed, case="mask_match, N=2,000")]
    rows[1].update(floor_seconds=None, bound=None, times_floor=None, share_of_ceiling=None)
    row = {"bench": "scaling", "parameters": {"N": 1000}}
    rows += [row | {"case": "memory, N=1,000, D=1536", "figures": sizes}]
    rows += [row | {"case": "memory, N=9, D=1536", "parameters": {"N": 9}, "absent": "no memory"}]
    rows += [row | {"case": "false matches, N=1,000, D=1536", "figures": chance}]
    text = bench("growth").page({"cpu": ("cpu-2026-01-01.json", figures)})
    assert "| mask_match, N=1,000 | 2 ms | 1.5 ms | 1 ms, bytes | 2x | 50% |" in text
    assert "| mask_match, N=2,000 | 2 ms | 1.5 ms | - | - | - |" in text
    assert "| 1,000 | 2 | 2 | 1.1 | 1 | 0.5 |" in text and "| 9 | not measured | | | | |" in " ".join(text.split("  "))
    assert "| 1,000 | 0.334 | 4.2% | 4.7% | 0.3144 | 0.3153 |" in text
    assert "(results/cpu-2026-01-01.json)" in text


def test_growth_page_tells_what_pages_cost(bench, figures, tmp_path):
    opening = {
        "N": 1000,
        "pages": 11,
        "pages_made": 10,
        "memory_bytes": 38.9e6,
        "store_bytes": 2.08e5,
        "saved_bytes": 3.93e9,
        "open_seconds": 0.258,
        "open_peak_bytes": 1.03e8,
        "search_seconds": 1.6e-5,
    }
    growing = {
        "N": 1000,
        "rows_bytes": 1.79e6,
        "grow_seconds": 2,
        "grow_slowest_seconds": 1e-3,
        "grow_peak_bytes": 1.8e6,
    }
    speeds = {"unedited": (10.0, 1.0), "matched, 40 pages": (9.0, 0.9)}
    decode = {name: {"tokens_per_second": one, "over_unedited": share} for name, (one, share) in speeds.items()}
    decoding = {"N": 3840, "decode": decode, "pages_beside_another": {"matched": 0.995}}
    row = {"bench": "pages", "parameters": {}}
    figures["rows"] = [
        row | {"case": "opening, N=1,000", "figures": opening},
        row | {"case": "growing, N=1,000", "figures": growing},
        row | {"case": "decoding", "absent": "no model"},
        row | {"case": "one page beside 40", "figures": decoding},
    ]
    figures["only"] = ["pages"]
    (tmp_path / "pages.json").write_text(json.dumps(figures))
    (tmp_path / "quick.json").write_text(json.dumps(figures | {"quick": True}))
    (tmp_path / "other.json").write_text(json.dumps(figures | {"rows": []}))
    name, found = bench("table").newest_with_pages(tmp_path)
    assert name == "pages.json" and not bench("table").newest(tmp_path)
    text = bench("growth").page({}, (name, found))
    assert "| 1,000 | 11 | 38.9 MB | 10 | 0.208 MB | 3.93 GB | 0.258 s | 103 MB | 16 us |" in text
    assert "grows to 1,000 rows, a thousand at a time: 2 s, 1 ms at" in text and "grows by 1.8 MB at most" in text
    assert "| 3,840 | matched, 40 pages | 9 | 90.0% |" in text and "of one run: 99.5% matched." in text


def test_page_without_markers_is_refused(bench):
    with pytest.raises(ValueError, match="lacks"):
        bench("table").rewritten("no markers", "")


def test_plots_of_the_newest_results(bench, tmp_path):
    pytest.importorskip("matplotlib", reason="plots are drawn by matplotlib, the extra `plots`")
    for _, figures in bench("table").newest().values():
        files = bench("plot").draw(figures, tmp_path)
        assert files and all(file.read_text().startswith("<?xml") for file in files)


def test_plot_without_rows_is_not_drawn(bench, figures, tmp_path):
    pytest.importorskip("matplotlib", reason="plots are drawn by matplotlib, the extra `plots`")
    plot = bench("plot")
    figures["machine"]["ceilings"] = {"read_bytes_per_second": 1e10}
    figures["machine"]["ceilings"] |= {f"{dtype}_operations_per_second": 1e11 for dtype in ("float32", "bfloat16")}
    chance = {"N": 1000, "threshold": 0.4, "best_overlap": 0.3, "best_overlap_formula": 0.3}
    row = {"bench": "scaling", "case": "false matches, N=1,000", "parameters": {}, "figures": chance}
    (tmp_path / "cpu-tokens.svg").write_text("of an earlier run")
    files = plot.draw(figures | {"rows": [row]}, tmp_path)
    assert sorted(path.name for path in files) == ["cpu-chance.svg", "cpu-roofline.svg"]
    assert set(files) == set(tmp_path.iterdir())
