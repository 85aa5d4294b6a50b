"""Checks on several processes of gloo, all on this machine's CPU."""

import json
import os
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

import memoir_fast

HERE = Path(__file__).parent
SIZES = (2, 4)


@pytest.fixture
def checks():
    """A file of checks, by name, as a module."""

    def load(name):
        spec = spec_from_file_location(name, HERE / f"{name}.py")
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def on_processes():
    """A function (file of checks, folder) that runs these on processes, two and then four, and shows what they raised.

    It gives the numbers of processes.
    """

    def run(name, folder, sizes=SIZES):
        command = [sys.executable, HERE / "processes.py", HERE / f"{name}.py", str(folder), *map(str, sizes)]
        found = os.pathsep.join([str(Path(memoir_fast.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        env = {**os.environ, "PYTHONPATH": found}
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240, env=env)
        assert done.returncode == 0, done.stderr[-4000:]
        for size in sizes:
            for rank in range(size):
                failed = json.loads((folder / f"failed-{size}-{rank}.json").read_text())
                assert not failed, "\n".join(failed.values())
        return sizes

    return run
