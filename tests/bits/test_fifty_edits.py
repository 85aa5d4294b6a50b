"""Masks, routes, weights, answers and files of fifty edits are, to the last bit, what they were.

A change that means to keep behaviour keeps these digests. One that means to change it says so, and writes them anew:
`python tests/bits/test_fifty_edits.py`.
"""

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).resolve().parent
RECORD = HERE / "fifty_edits.json"
# Sums are taken in one order on every processor: torch's plain loops, MKL's compatible path, one thread.
SAME_EVERYWHERE = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}


def machine():
    """What the last bits may depend on."""
    cpus = Path("/proc/cpuinfo")
    makers = re.findall(r"^vendor_id\s*: (\w+)", cpus.read_text() if cpus.exists() else "", re.MULTILINE)
    return {"torch": torch.__version__, "processor": " ".join([platform.machine(), *makers[:1]])}


def outcome(**more):
    python_path = os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, **SAME_EVERYWHERE, "PYTHONPATH": python_path, **more}
    run = subprocess.run(
        [sys.executable, HERE / "fifty_edits.py"], capture_output=True, text=True, env=environment, check=False
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def both():
    return {backend: outcome(MEMOIR_FAST_BACKEND=backend) for backend in ("auto", "reference")}


@pytest.fixture(scope="module")
def found():
    return both()


@pytest.mark.slow
def test_backends_agree(found):
    assert found["auto"]["matched"] >= 30
    assert found["auto"] == found["reference"]


@pytest.mark.slow
def test_all_bits_are_as_recorded(found):
    record = json.loads(RECORD.read_text())
    if record["machine"] != machine():
        pytest.skip(f"recorded with {record['machine']}, this is {machine()}: other libraries add up in another order")
    assert found["auto"] == record["bits"]


if __name__ == "__main__":
    RECORD.write_text(json.dumps({"machine": machine(), "bits": both()["auto"]}, indent=2) + "\n")
