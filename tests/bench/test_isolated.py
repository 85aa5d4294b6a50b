"""Benchmarks in processes of their own: crashes, hangs and limits cost one benchmark's rows."""

import json
import os
import sys
import time

import pytest

DRIVER = """
import argparse, json, os, pathlib, signal, sys, time
parser = argparse.ArgumentParser()
for name in ("--only", "--json"):
    parser.add_argument(name)
parser.add_argument("--wait", action="store_true")
asked = parser.parse_args()
limit = float(sys.stdin.readline())
path = pathlib.Path(asked.json)
rows = [{"bench": asked.only, "case": "first", "parameters": {}, "limit": limit, "row_seconds": 0.1}]
path.with_name(path.name + ".part").write_text(json.dumps({"rows": rows}))
if asked.only == "crashes":
    os.kill(os.getpid(), signal.SIGSEGV)
if asked.only == "raises":
    raise RuntimeError("no more")
if asked.only == "hangs":
    time.sleep(60)
path.write_text(json.dumps({"rows": rows + [rows[0] | {"case": "second"}]}))
"""


@pytest.fixture
def rows_of(bench, tmp_path):
    """Runs benchmarks by a driver that crashes, raises or hangs by name; the rows by benchmark, and what was seen."""
    isolated = bench("isolated")
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER)

    def run(names, limit=60.0, most=30.0):
        seen = []
        command = [sys.executable, str(driver)]
        found = list(isolated.rows_of_each(dict.fromkeys(names, most), command, limit, seen.append))
        return {name: [row for row in found if row["bench"] == name] for name in names}, seen

    return run


def test_a_crash_costs_its_own_rows_alone(rows_of):
    found, _ = rows_of(["one", "crashes", "raises", "two"])
    for name in ("one", "two"):
        assert [row["case"] for row in found[name]] == ["first", "second"]
    first, rest = found["crashes"]
    assert first["case"] == "first", "what it had measured is kept"
    assert rest["failed"] == "the process ended by signal SIGSEGV: it said nothing"
    assert found["raises"][0]["case"] == "second" or found["raises"][-1]["case"] == "first"


def test_one_that_ends_without_a_row_says_its_last_words(bench, tmp_path):
    driver = tmp_path / "driver.py"
    driver.write_text("import sys; sys.stdin.readline(); raise SystemExit('the device is gone')")
    (row,) = bench("isolated").rows_of_each({"x": 30.0}, [sys.executable, str(driver)], 60, lambda _: None)
    assert row["failed"] == "the process ended by exit code 1: the device is gone"


def test_one_that_hangs_is_stopped(bench, rows_of, monkeypatch):
    monkeypatch.setattr(bench("isolated"), "PATIENCE", 0.5)
    started = time.monotonic()
    found, seen = rows_of(["hangs", "one"], most=4.0)
    assert time.monotonic() - started < 30
    first, rest = found["hangs"]
    assert (first["case"], rest["failed"]) == ("first", "stopped 0 s past its time limit of 4 s")
    assert [first] in seen, "rows are seen while it runs"
    assert [row["case"] for row in found["one"]] == ["first", "second"]


def test_what_there_is_no_time_for_is_not_begun(rows_of):
    found, _ = rows_of(["one", "two"], limit=1.0)
    assert [row["absent"] for rows in found.values() for row in rows] == ["the time limit of the run was reached"] * 2


def test_the_limit_is_told(rows_of):
    found, _ = rows_of(["one"], limit=20.0, most=7.0)
    assert found["one"][0]["limit"] == 7.0


@pytest.mark.slow
def test_the_driver_runs_apart(bench, tmp_path):
    """The real driver, the real processes, two small benchmarks."""
    path, run = tmp_path / "result.json", bench("run")
    options = ["--quick", "--apart", "--only", "memory_update", "--only", "host", "--json", str(path)]
    assert run.main(options) == 0
    figures = json.loads(path.read_text())
    assert figures["machine"]["commit"] and [row["bench"] for row in figures["rows"]] == ["memory_update", "host"]
    update, host = figures["rows"]
    assert update["seconds"]["cold"]["p50"] > 0 and host["figures"]["tophash"] > 0
    assert not os.path.exists(f"{path}.part")
