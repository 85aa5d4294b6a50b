"""Makes the modules of bench/ importable, and a case whose kernel a test may make wrong or slow."""

import importlib
import sys
import time
from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture(scope="session")
def bench():
    """Imports a module of bench/ by name."""
    sys.path.insert(0, str(BENCH))
    try:
        yield importlib.import_module
    finally:
        sys.path.remove(str(BENCH))


@pytest.fixture
def timer(bench):
    """A CPU timer with small buffers."""
    measure = bench("measure")
    timer = measure.CpuTimer()
    timer._flush = torch.ones(1 << 17)
    timer._target = torch.empty_like(timer._flush)
    return timer


@pytest.fixture
def doubling(bench):
    """Makes a case that doubles 1,000 numbers, wrongly where `off` is not 0, after `sleep` seconds."""
    cases = bench("cases")

    def make(off: float = 0.0, sleep: float = 0.0):
        def run(x):
            time.sleep(sleep)
            return 2 * x + off

        def check(inputs, result):
            cases.require_close(result, 2 * inputs[0].double(), "doubling")

        def prepared(_):
            peers = {
                "right": cases.Peer(lambda x: x + x),
                "wrong": cases.Peer(lambda x: x),
                "dies": cases.Peer(lambda x: x.no_such_method()),
                "none": cases.Absent("not here"),
            }
            return cases.Prepared(run, lambda: (torch.randn(1000),), check, bytes=8000, peers=peers)

        return cases.Case("doubling", "1,000 numbers", {"n": 1000}, prepared)

    return make
