"""Tuning without a GPU: what it refuses, how it chooses, what it writes; on a GPU, one real run."""

import json

import pytest
import torch
from memoir_fast.kernels import _launch
from memoir_fast.kernels import _tuning as tuning

from memoir_fast.errors import BackendError


@pytest.fixture
def table(tmp_path, monkeypatch):
    path = tmp_path / "cache" / "table.json"
    monkeypatch.setenv("MEMOIR_FAST_LAUNCH_TABLE", str(path))
    _launch.forget()
    yield path
    monkeypatch.undo()
    _launch.forget()


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a CUDA device")
def test_without_a_device_it_says_so():
    with pytest.raises(BackendError, match="tuning needs a CUDA device, torch sees none"):
        tuning.tune()


def _trial(call):
    return tuning.Trial("tophash", "D14336", "tophash", call)


def test_the_fastest_correct_configuration_wins(table):
    times = {8: 5.0, 16: 7.0, 32: 1.0}
    shipped = _launch.lookup("tophash", "a GPU", ("D14336", "4 bytes"))["num_warps"]

    def warps() -> int:
        return _launch.config("tophash", torch.empty(0), "D14336").get("num_warps", shipped)

    def call() -> torch.Tensor:
        return torch.tensor(1.0 if warps() == 32 else 0.0)  # 32 warps is the fastest, and wrong

    row = tuning._tune_one(_trial(call), "a GPU", False, lambda _: times.get(warps(), 9.0))
    assert row["configuration"]["num_warps"] == 8
    assert (row["microseconds"], row["key"]) == (5.0, "D14336")
    assert not _launch._overrides


def test_what_fails_to_compile_is_passed_over(table):
    def call() -> torch.Tensor:
        if _launch._overrides:
            raise RuntimeError("out of resources: shared memory")
        return torch.zeros(1)

    row = tuning._tune_one(_trial(call), "a GPU", True, lambda _: 3.0)
    assert row["tried"] == 1
    assert row["configuration"] == _launch.lookup("tophash", "a GPU", ("D14336", "2 bytes"))


def test_the_table_keeps_what_it_had_and_is_read_back(table):
    table.parent.mkdir()
    table.write_text(json.dumps({"another GPU": {"tophash": {"*": {"num_warps": 4}}}}))
    tuning._write("a GPU", [{"kernel": "tophash", "key": "D14336", "configuration": {"num_warps": 2}}])
    _launch.forget()
    assert _launch.lookup("tophash", "a GPU", ("D14336",))["num_warps"] == 2
    assert _launch.lookup("tophash", "another GPU", ("D14336",))["num_warps"] == 4
    assert [path.name for path in table.parent.iterdir()] == [table.name]


def test_every_parameter_that_is_tuned_is_one_of_the_kernel(table):
    for kernel, space in tuning._FULL.items():
        known = _launch.lookup(kernel, "a GPU", ("2 bytes",))
        assert set(space) <= set(known), kernel


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="times kernels: needs a CUDA device")
def test_a_real_run_writes_the_table(table):
    (row,) = tuning.tune(["tophash"], quick=True)
    written = json.loads(table.read_text())[torch.cuda.get_device_name()]["tophash"]["D14336"]
    assert written == row["configuration"]
    assert 0 < row["microseconds"] <= row["shipped_microseconds"]
