"""A run of `memoir eval` that is killed, as a machine kills it, and started again."""

import json
import os
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from memoir_fast.cli.app import app

EDITS = 8
ENOUGH = 120  # seconds, on a machine that does other work


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "edits.jsonl"
    words = ("Rome", "camel", "old", "Greek")
    rows = [{"prompt": f"What is the number {row * 37}?", "target": words[row % 4]} for row in range(EDITS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def arguments(model, data, run):
    options = ["-m", model, "-d", data, "-n", EDITS, "--tau", 0.9, "--k", 12, "--checkpoint-every", 2, "--no-free"]
    options += ["--baselines", "none", "--dtype", "float32", "--device", "cpu", "--run", run, "-q"]
    return ["eval", *map(str, options), "--json", str(run.with_suffix(".json"))]


def evaluated(model, data, run):
    """The command's result, run here."""
    done = CliRunner().invoke(app, arguments(model, data, run))
    assert done.exit_code == 0, done.output
    return json.loads(run.with_suffix(".json").read_text())


def saved(run):
    """Edits in the memory that the run saved last."""
    counts = [int(path.parent.name[7:]) for path in run.glob("memory-*/memory_config.json")]
    return max(counts, default=0)


def killed_in_the_middle(model, data, run):
    """Starts the command in a process of its own and kills it after its first checkpoint."""
    command = [sys.executable, "-m", "memoir_fast", *arguments(model, data, run)]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # as in this process
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=one_thread)
    end = time.monotonic() + ENOUGH
    try:
        while saved(run) == 0:
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < end, f"no checkpoint within {ENOUGH} s"
            time.sleep(0.005)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode < 0  # by the signal: it had not ended by itself


@pytest.mark.skipif(sys.platform == "win32", reason="a process there is not killed by a signal")
def test_a_killed_run_goes_on_to_the_same_result(data, saved_model, tmp_path, same):
    run = tmp_path / "cut"
    killed_in_the_middle(saved_model, data, run)
    learned = saved(run)
    assert 0 < learned < EDITS and not run.with_suffix(".json").exists() and not (run / "main.json").exists()
    kept = [json.loads(line)["seconds"] for line in (run / "edits.jsonl").read_text().splitlines()[:learned]]
    resumed = evaluated(saved_model, data, run)
    assert [one["seconds"] for one in resumed["per_edit"][:learned]] == kept  # these were not learned again
    whole = evaluated(saved_model, data, tmp_path / "whole")
    assert same(resumed, whole)
    assert not same({**resumed, "per_edit": []}, whole)
