"""Every target of a GPU has a prediction, judged as a measurement is; what is called measured was."""

import dataclasses

import pytest
import torch

from memoir_fast.modules import adding, memoir_linear


@pytest.fixture
def planned(bench):
    return bench("planned")


@pytest.fixture
def predict(bench):
    return bench("predict")


@pytest.fixture
def costs(predict, bench):
    return predict.fit(bench("static_time").measured())


def not_counted(planned, costs):
    return [one.predicted.what for one in planned.judged(costs) if one.predicted.value is None]


def test_every_target_of_a_gpu_is_predicted(planned, costs, bench, monkeypatch):
    found = planned.judged(costs)
    assert len(found) == len(bench("targets").targets("cuda")) + len(bench("bench_edit_phases").GPU_TARGETS)
    assert not not_counted(planned, costs)
    forgotten = bench("bench_mask_match").PREDICTED.planned[1]
    monkeypatch.setattr(planned, "PLANNED", [row for row in planned.PLANNED if row != forgotten])
    assert not_counted(planned, costs) == [
        "mask_match, 1 query, N=7,000, D=14336: us, alone",
        "mask_match, 1 query, N=7,000, D=14336: times the speed of torch.compile",
    ]


def test_every_planned_row_is_of_a_case_that_there_is(planned, bench):
    settings, named = bench("cases").Settings(device="cuda"), bench("benchmarks").NAMED
    for row in planned.PLANNED:
        assert row.target is not None or row.case in [case.name for case in named[row.bench].cases(settings)], row.case
    assert len({(row.bench, row.case) for row in planned.PLANNED}) == len(planned.PLANNED)


def test_kernels_that_were_measured_are_predicted(planned, costs):
    """Within what the model has been seen to be off; a count that says something else of a kernel would show here."""
    errors = {f"{row.bench}, {row.case}": planned.error(row, costs) for row in planned.PLANNED}
    known = {name: off for name, off in errors.items() if off is not None}
    assert len(known) >= 15
    unexplained = {"masked_linear, 1 x 64 tokens, D=14336, bfloat16", "mask_columns, 1 row, D=14336, k=4096"}
    assert {name for name, off in known.items() if abs(off) > 1 / 3} == unexplained


def test_measured_figures_are_those_that_were_printed(planned, predict, bench):
    rows = {(row.bench, row.case): row for row in planned.PLANNED}
    hashed = [rows["tophash", f"{name}, D=14336, k=4096"] for name in ("1 row", "64 rows", "8192 rows")]
    assert [planned.seen(row) for row in hashed] == pytest.approx([10.49e-6, 14.33e-6, 451.47e-6])
    searched = rows["mask_match", "1 query, N=7,000, D=14336"]
    assert planned.seen(searched) == pytest.approx(9.95e-6, rel=1e-3)
    assert planned.seen(searched._replace(seen=None)) is None
    with pytest.raises(LookupError, match="nothing that matches"):
        planned.seen(searched._replace(seen=predict.Seen(r"no such line ([\d.]+)")))
    with pytest.raises(LookupError):
        planned.seen(searched._replace(case="another"))


def test_ratio_is_to_the_peer_that_is_counted_or_else_to_the_one_that_ran(planned, predict, costs, bench):
    row = predict.Row("mask_match", "1 query, N=7,000, D=14336", (predict.Work(),))
    times = bench("figure").times("torch.compile")
    ran = planned.taken(planned.of_run()[row.bench, row.case]["peers"]["torch.compile"])
    assert times(planned.as_result(row, 1e-6, {})) == pytest.approx(ran / 1e-6)
    assert times(planned.as_result(row, 1e-6, {"torch.compile": 3e-6})) == pytest.approx(3)


def test_page_says_of_each_target_whether_it_is_reached(planned, predict, monkeypatch):
    row = predict.Row("tophash", "a", (predict.Work(),), target=5.0)
    slow = row._replace(case="b", kernels=(predict.Work(streamed=1e9),), note="too many bytes")
    monkeypatch.setattr(planned, "PLANNED", (row, slow))
    lines = planned.targets_table(predict.FIRST).splitlines()
    assert "| tophash, a: us | 2.3 | <= 5 | reached |  |  |" in lines
    assert "| tophash, b: us | 326 | <= 5 | not reached |  |  |" in lines
    assert any(line.endswith("| >= 0.92 | not counted |  |  |") for line in lines)
    assert planned.times_table(predict.FIRST).endswith("| tophash, b | 1 | 325.9 | streamed |  |  | too many bytes |")


def test_page_in_the_tree_is_of_these_counts(planned, costs):
    page = (planned.RESULTS / "static.md").read_text(encoding="utf-8")
    again = "`python bench/static.py` writes it anew"
    assert planned.targets_table(costs) in page and planned.times_table(costs) in page, again


def test_error_is_of_the_kernels_as_they_were(planned, predict):
    then, now = (predict.Work(streamed=1e9),), (predict.Work(streamed=5e8),)
    seconds = predict.FIRST.seconds(then)
    row = predict.Row("mask_match", "1 query, N=7,000, D=14336", now, seen=predict.Seen(since="half the bytes"))
    assert planned.error(row, predict.FIRST) is None
    row = row._replace(seen=row.seen._replace(kernels=then))
    assert planned.error(row, predict.FIRST) == pytest.approx(seconds / planned.seen(row) - 1)


def test_no_kernel_of_torch_stands_between_the_search_and_the_product(bench, monkeypatch):
    """On a device that is not asked for values."""
    bench_layer, calls = bench("bench_layer"), bench("issued").Calls()
    layer = dataclasses.replace(bench("shapes").SMOLLM, width=256, outputs=8, k=16)
    edited, x = bench_layer.edited_layer(layer, 4, torch.float32, "cpu"), torch.randn(1, 4, 256)
    for module in (adding, memoir_linear):
        monkeypatch.setattr(module, "follows_nothing", lambda _: False)
    with torch.no_grad(), calls:
        edited(x)
    assert calls.counted.total() == 1 + 5  # the base layer's product; feature, hash, search, rows, product


def test_calls_of_an_edit_are_counted_by_phase(bench):
    issued, edit_phases = bench("issued"), bench("bench_edit_phases")
    found = issued.per_edit(layers=4, batch=2, edits=2)
    assert set(found) == {*edit_phases.PHASES, issued.REST}
    assert found["tail backward"] >= edit_phases.STEPS
