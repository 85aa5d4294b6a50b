"""The driver, on one small case per benchmark; its table, result file and exit codes."""

import json
import re
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def small_timer(bench, timer, monkeypatch):
    monkeypatch.setattr(bench("measure"), "timer_for", lambda _: timer)
    monkeypatch.setattr(timer, "matrix_rate", lambda _: 1e9)


def test_every_op_has_its_benchmark(bench):
    from memoir_fast import backends

    benchmarks = bench("benchmarks")
    assert {one.name for one in benchmarks.ON_GPU} <= set(benchmarks.NAMED)
    assert len(benchmarks.NAMED) == len(benchmarks.ON_CPU), "two of one name"
    own = {op for op in backends.OPS if not op.startswith("masked_linear_") and "sketch" not in op}
    assert set(benchmarks.NAMED) >= own


def test_every_file_of_a_benchmark_is_listed(bench):
    named = bench("benchmarks").NAMED
    files = {path.stem.removeprefix("bench_") for path in BENCH.glob("bench_*.py")} - {"all"}
    assert files == set(named)
    for name in files:
        assert bench(f"bench_{name}").BENCHMARK is named[name]


OPS = {"prompt_feature", "tophash", "mask_columns", "mask_overlap", "mask_match", "masked_linear", "memory_update"}
OPS |= {"route_rows", "code_route"}


@pytest.mark.parametrize("op", sorted(OPS))
def test_what_is_known_of_an_op_is_in_one_file(bench, op):
    """Beside it, at most the table's titles and what is built on the op: the layer, a sketch, a whole model."""
    naming = {path.name for path in BENCH.glob("*.py") if re.search(rf"\b{op}\b", path.read_text(encoding="utf-8"))}
    assert f"bench_{op}.py" in naming and len(naming) <= 5, naming
    assert not naming & {"run.py", "benchmarks.py", "targets.py", "sources.py", "plot.py", "growth.py", "static.py"}


@pytest.mark.parametrize("name", sorted(OPS | {"layer", "sketch", "backward"}))
def test_quick_run_of_each(bench, small_timer, name, tmp_path, capsys):
    path = tmp_path / "result.json"
    assert bench("run").main(["--quick", "--only", name, "--json", str(path)]) == 0
    figures = json.loads(path.read_text())
    assert figures["quick"] and figures["machine"]["threads"] == 1 and figures["machine"]["commit"]
    for row in figures["rows"]:
        assert row["bench"] == name and row["seconds"]["cold"]["p50"] > 0, row
        measured = [peer for peer in row["peers"].values() if "ratio" in peer]
        assert measured, f"no peer ran: {row['peers']}"
        for peer in row["peers"].values():
            assert "ratio" in peer or peer["absent"]
            assert "wrong result" not in peer.get("absent", "")
    assert len(capsys.readouterr().out.splitlines()) <= 80


def test_wrong_result_is_said_and_fails(bench, small_timer, monkeypatch, tmp_path, capsys):
    from memoir_fast import ops

    module = bench("bench_mask_overlap")
    right = ops.mask_overlap
    monkeypatch.setattr(module.ops, "mask_overlap", lambda *inputs: right(*inputs) + 1)
    path = tmp_path / "result.json"
    assert bench("run").main(["--quick", "--only", "mask_overlap", "--json", str(path)]) == 1
    (row,) = json.loads(path.read_text())["rows"]
    assert "failed" in row and "seconds" not in row
    assert "WRONG" in capsys.readouterr().out


def test_a_run_out_of_time_says_so(bench, small_timer, tmp_path):
    path = tmp_path / "result.json"
    assert bench("run").main(["--quick", "--limit", "0", "--json", str(path)]) == 0
    rows = json.loads(path.read_text())["rows"]
    assert {row["bench"] for row in rows} == set(bench("benchmarks").NAMED)
    assert all("time limit" in row["absent"] for row in rows)


def test_without_a_gpu_it_ends(bench, monkeypatch, capsys):
    monkeypatch.setattr(bench("run").torch.cuda, "is_available", lambda: False)
    assert bench("run").main(["--gpu"]) == 2
    assert "needs a CUDA device" in capsys.readouterr().err


def test_table_is_short_whatever_the_run_held(bench):
    row = {"bench": "tophash", "case": "x", "parameters": {}, "absent": "no"}
    machine = {
        "device": "cpu",
        "processor": {"name": "a processor"},
        "threads": 1,
        "commit": "0",
        "date": "today",
        "ceilings": {"read_bytes_per_second": 1e9, "copy_bytes_per_second": 1e9},
    }
    text = bench("summary").table({"machine": machine, "rows": [row] * 500})
    assert len(text.splitlines()) <= 80 and "more lines" in text


def test_masks_keep_bits_past_the_width_clear(bench):
    from memoir_fast.mask_format import unpack

    shapes = bench("shapes")
    layer = shapes.Layer("-", 1000, 8, 285)
    bits = unpack(shapes.masks(200, layer), layer.words * 32)
    assert not bits[:, 1000:].any() and 0.2 < bits[:, :1000].float().mean() < 0.3


def test_match_oracle_is_the_reference(bench):
    from memoir_fast.reference import mask_match as reference

    shapes, match = bench("shapes"), bench("bench_mask_match")
    layer = shapes.SMOLLM
    store, query = shapes.masks(1300, layer), shapes.masks(3, layer)
    store[700] = store[1299] = query[0]  # equal in two blocks: the lower one counts
    arguments = query, store, shapes.count_of(1300, "cpu"), shapes.thresholds_of(1300, layer.min_overlap, "cpu")
    for found, expected in zip(match.in_blocks(*arguments), reference.mask_match(*arguments), strict=True):
        assert found.tolist() == expected.tolist()
    assert match.in_blocks(*arguments)[0][0] == 700
    arguments[3][700], arguments[3][5], arguments[3][1290] = 1 << 30, 1, 2  # the best row does not match, others do
    for found, expected in zip(match.in_blocks(*arguments), reference.mask_match(*arguments), strict=True):
        assert found.tolist() == expected.tolist()


@pytest.fixture
def counting(bench, small_timer, monkeypatch):
    """The driver with one benchmark that gives three rows and then raises."""

    def rows(settings, timer):
        for case in range(3):
            yield {"bench": "edit", "case": str(case), "parameters": {}, "absent": "only counted"}
        raise RuntimeError("no more")

    return only(bench, monkeypatch, edit=rows)


def only(bench, monkeypatch, **rows):
    """The driver with these benchmarks alone, by name, and what gives their rows."""
    run = bench("run")
    monkeypatch.setattr(run, "ON_CPU", tuple(bench("benchmark").Benchmark(name, (), rows=rows[name]) for name in rows))
    return run


def test_benchmark_that_raises_leaves_its_rows_and_fails(counting, tmp_path, capsys):
    path = tmp_path / "result.json"
    assert counting.main(["--quick", "--only", "edit", "--json", str(path)]) == 1
    *rows, last = json.loads(path.read_text())["rows"]
    assert [row["case"] for row in rows] == ["0", "1", "2"]
    assert last["failed"] == "RuntimeError: no more"
    assert all(row["row_seconds"] >= 0 for row in rows)
    assert "edit 0" in capsys.readouterr().out, "the seconds of each benchmark are printed last"


def test_cut_off_run_leaves_its_part_beside_an_older_file(counting, bench, tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    path.write_text("the older one")

    def interrupted(settings, timer):
        yield {"bench": "tophash", "case": "first", "parameters": {}, "absent": "only counted"}
        raise KeyboardInterrupt

    (edit,) = counting.ON_CPU
    run = only(bench, monkeypatch, edit=edit.rows, tophash=interrupted)
    monkeypatch.setattr(run, "report", lambda _: pytest.fail("the run should have been interrupted"))
    with pytest.raises(KeyboardInterrupt):
        run.main(["--quick", "--json", str(path)])
    assert path.read_text() == "the older one"
    assert len(json.loads((tmp_path / "result.json.part").read_text())["rows"]) == 5


def test_whole_run_names_one_file_and_a_part_of_it_none(bench):
    run = bench("run")
    machine = {"device": "cpu"}
    assert run.default_name(machine).startswith("cpu-2") and run.default_name(machine).endswith(".json")
