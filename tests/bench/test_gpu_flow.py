"""The whole of `make gpu` with the device stood in for: stages, budgets, cut-offs, a benchmark that dies."""

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

STAND_IN = '''#!{python}
"""A python3 that answers as one on a machine with a GPU would; what it runs is this file's own."""
import json, os, pathlib, sys, time
arguments = sys.argv[1:]
text = " ".join(arguments)
if arguments[0] == "-c":
    if "get_device_name" in text:
        print("Stand-In GPU|9.0")
    raise SystemExit(1 if "import xdist" in text and os.environ.get("NO_XDIST") else 0)
if "setup.py" in text:
    raise SystemExit(int(os.environ.get("BUILD_CODE", "0")))
if "bench/run.py" in text:
    path = pathlib.Path(arguments[arguments.index("--json") + 1])
    rows = [
        {{"bench": "tophash", "case": "1 row", "parameters": {{}}, "absent": "stood in for", "row_seconds": 1.0}},
        {{"bench": "generate", "case": "the rest", "parameters": {{}}, "failed": "the process ended by signal SIGSEGV",
         "row_seconds": 1.0}},
    ]
    rate = {{"read_bytes_per_second": 3e12, "copy_bytes_per_second": 3e12}}
    machine = {{"device": "cuda", "gpu": {{"devices": [{{"name": "Stand-In GPU"}}]}}, "threads": 1, "commit": "0",
               "date": "2026-01-01", "ceilings": rate}}
    figures = json.dumps({{"machine": machine, "rows": rows, "quick": False}})
    path.with_name(path.name + ".part").write_text(figures)
    if os.environ.get("BENCH_HANGS"):
        time.sleep(60)
    path.with_name(path.name + ".part").replace(path)
    raise SystemExit(1)
if "pytest" in arguments and os.environ.get("TESTS_HANG"):
    try:
        time.sleep(60)
    except KeyboardInterrupt:  # as pytest does
        print("FAILED tests/ops/test_x.py::test_z - AssertionError: before it was cut off")
        print("1 failed, 3 passed in 0.10s")
        raise SystemExit(2)
if "pytest" in arguments:
    print("FAILED tests/ops/test_x.py::test_y[cuda] - AssertionError: off by one")
    print("1 failed, 41 passed in 0.10s")
    raise SystemExit(1)
os.execv({python!r}, [{python!r}, *arguments])
'''


@pytest.fixture
def make_gpu(tmp_path):
    """Runs .ci/gpu in a copy of the tree; the finished process and its results file."""
    root = tmp_path / "tree"
    root.mkdir()
    shutil.copytree(ROOT / ".ci", root / ".ci")
    shutil.copytree(ROOT / "bench", root / "bench", ignore=shutil.ignore_patterns("results", "plots", "__pycache__"))
    python = tmp_path / "python3"
    python.write_text(STAND_IN.format(python=sys.executable))
    python.chmod(python.stat().st_mode | stat.S_IXUSR)

    def run(**environment):
        bare = tmp_path / "bin"  # neither ncu nor compute-sanitizer
        bare.mkdir(exist_ok=True)
        for tool in (
            "bash",
            "timeout",
            "tail",
            "cut",
            "grep",
            "awk",
            "date",
            "mktemp",
            "mkdir",
            "mv",
            "nproc",
            "seq",
            "dirname",
            "find",
            "sort",
            "xargs",
            "sh",
            "tr",
            "env",
        ):
            found = shutil.which(tool)
            if found and not (bare / tool).exists():
                (bare / tool).symlink_to(found)
        values = {"PATH": str(bare), "HOME": str(tmp_path), "PYTHON": str(python), "LOGS": str(tmp_path / "logs")}
        values["PYTHONPATH"] = str(ROOT)  # where the package is not installed
        done = subprocess.run(
            ["bash", str(root / ".ci" / "gpu")],
            env=values | {name: str(value) for name, value in environment.items()},
            capture_output=True,
            text=True,
            timeout=100,
        )
        results = list((root / "bench" / "results").glob("Stand-In-GPU-*.json"))
        return done, json.loads(results[0].read_text()) if results else None

    return run


def outcomes(text):
    """Stage -> outcome, from the table."""
    lines = text.split("stage on Stand-In GPU")[1].split("to look at:")[0].splitlines()[1:]
    return {line[:20].strip(): line[21:93].strip() for line in lines if line.strip()}


def test_the_whole_flow(make_gpu, tmp_path):
    done, figures = make_gpu()
    assert done.returncode == 1, "a row was wrong, a test failed"
    found = outcomes(done.stdout)
    assert found["build"] == "ok" and found["bench"] == "exit 1"
    assert found["tests on the GPU"].startswith("exit 1, ") and "1 failed" in found["tests on the GPU"]
    assert found["ncu"] == found["compute-sanitizer"] == "not run: not installed"
    assert [row["bench"] for row in figures["rows"]] == ["tophash", "generate"]
    last = done.stdout.split("to look at:")[1].splitlines()
    assert last[1] == "WRONG   generate: the rest: the process ended by signal SIGSEGV"
    assert last[2] == "FAILED  tests/ops/test_x.py::test_y[cuda]: AssertionError: off by one"
    assert {path.name for path in (tmp_path / "logs").iterdir()} >= {"build.log", "bench.log", "tests-on-the-GPU.log"}


def test_stages_that_hang_leave_what_they_have_and_the_next_ones_their_time(make_gpu):
    done, figures = make_gpu(BUDGET=14, LEAST=3, BENCH_HANGS=1, TESTS_HANG=1)
    found = outcomes(done.stdout)
    assert found["bench"] == "stopped at its time limit"
    assert [row["bench"] for row in figures["rows"]] == ["tophash", "generate"], "what was written row by row"
    cut_off = "stopped at its time limit, "
    assert found["tests on the GPU"] in (cut_off + "1 failed, 3 passed", cut_off + "3 passed, 1 failed")
    assert "FAILED  tests/ops/test_x.py::test_z: AssertionError: before it was cut off" in done.stdout


def test_every_test_of_a_gpu_is_where_they_are_looked_for():
    (line,) = [
        one for one in (ROOT / ".ci" / "gpu").read_text().splitlines() if one.startswith('tests "tests on the GPU"')
    ]
    folders = [ROOT / name for name in line.split('"gpu"')[1].split()]
    marked = [path for path in (ROOT / "tests").rglob("*.py") if "mark." + "gpu" in path.read_text()]
    assert len(marked) > 5 and len(folders) > 1
    assert [path for path in marked if not any(path.is_relative_to(folder) for folder in folders)] == []


@pytest.mark.parametrize("lost", [True, False])
def test_a_worker_whose_device_has_failed_ends_after_its_test(request, monkeypatch, capfd, lost):
    """Its context is gone, and each further test would fail in it. An error that left the device usable is an error."""
    (own,) = [
        one
        for one in request.config.pluginmanager.get_plugins()
        if str(getattr(one, "__file__", "")) == str(ROOT / "tests" / "conftest.py")
    ]
    ended = []

    def synchronize():
        if lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    monkeypatch.setattr("torch.cuda.synchronize", synchronize)
    monkeypatch.setattr(own.os, "_exit", ended.append)

    def failing():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    call = pytest.CallInfo.from_call(failing, "call")
    steps = own.pytest_runtest_makereport(request.node, call)
    next(steps)
    with pytest.raises(StopIteration) as stopped:
        steps.send("the report")
    assert stopped.value.value == "the report" and ended == ([1] if lost else [])
    assert ("illegal memory access" in capfd.readouterr().err) == lost


def test_no_time_left_is_said_and_is_no_failure_of_the_stage(make_gpu):
    done, figures = make_gpu(BUDGET=3)
    found = outcomes(done.stdout)
    assert set(found.values()) == {"not run: no time left", "not run: not installed"}
    assert figures is None and done.returncode == 0


def test_without_a_device_it_says_so(tmp_path):
    python = tmp_path / "python3"
    python.write_text("#!/bin/sh\nexit 0\n")
    python.chmod(0o755)
    environment = os.environ | {"PYTHON": str(python)}
    done = subprocess.run(["bash", str(ROOT / ".ci" / "gpu")], env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "needs a CUDA device" in done.stderr
