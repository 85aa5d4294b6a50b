"""Which backend runs, and what is said where none can."""

import logging

import pytest
import torch

from memoir_fast import backends, ops
from memoir_fast.errors import BackendError, MemoirError
from memoir_fast.ops import mask_overlap


@pytest.fixture
def registry(monkeypatch):
    """A table of op -> backend -> implementation or reason, which the dispatcher reads instead of the real ones."""
    table = {}
    monkeypatch.setattr(backends, "load", lambda op, backend: table[op, backend])
    monkeypatch.setattr(backends, "_last", {})
    monkeypatch.setattr(backends, "_said", set())
    monkeypatch.delenv("MEMOIR_FAST_BACKEND", raising=False)
    return table


def serves(name, reason=None):
    return backends.Implementation(lambda *args: name, lambda *args: reason)


def masks():
    return torch.ones(1, 4, dtype=torch.int32)


def test_auto_takes_the_fastest_that_works(registry):
    registry["op", "cpu"], registry["op", "reference"] = serves("cpu"), serves("reference")
    assert backends.run("op", masks()) == "cpu"
    assert backends.last_used() == {"op": "cpu"}


@pytest.mark.parametrize("lacking", ["ImportError: not built", serves("cpu", "needs int32")], ids=["absent", "refuses"])
def test_auto_passes_over_what_cannot_serve_and_says_so_once(registry, lacking, caplog):
    registry["op", "cpu"], registry["op", "reference"] = lacking, serves("reference")
    reason = lacking if isinstance(lacking, str) else "needs int32"
    with caplog.at_level(logging.DEBUG, "memoir_fast"):
        for _ in range(3):
            assert backends.run("op", masks()) == "reference"
    assert [(record.levelname, record.message) for record in caplog.records if record.name == "memoir_fast"] == [
        ("DEBUG", f"op: backend cpu passed over: {reason}")
    ]
    assert backends.last_used() == {"op": "reference"}


def test_explicit_choice_raises_with_the_reason(registry):
    registry["op", "cpu"], registry["op", "reference"] = "ImportError: not built", serves("reference")
    with backends.use("cpu"), pytest.raises(BackendError) as caught:
        backends.run("op", masks())
    assert str(caught.value) == "no backend of 'cpu' can serve op: cpu: ImportError: not built"
    assert isinstance(caught.value, MemoirError)
    assert backends.last_used() == {}


def test_list_is_an_order_of_preference(registry):
    registry["op", "cuda"], registry["op", "triton"] = "no device", serves("triton", "needs cuda tensors, got cpu")
    registry["op", "cpu"], registry["op", "reference"] = serves("cpu"), serves("reference")
    with backends.use("cuda, reference,cpu"):
        assert backends.run("op", masks()) == "reference"
    with backends.use("cuda,triton"), pytest.raises(BackendError) as caught:
        backends.run("op", masks())
    assert str(caught.value) == (
        "no backend of 'cuda,triton' can serve op: cuda: no device; triton: needs cuda tensors, got cpu"
    )


def test_environment_variable(registry, monkeypatch):
    registry["op", "cpu"], registry["op", "reference"] = serves("cpu"), serves("reference")
    assert backends.requested() == "auto"
    monkeypatch.setenv("MEMOIR_FAST_BACKEND", "reference")
    assert backends.requested() == "reference"
    assert backends.run("op", masks()) == "reference"
    with backends.use("cpu"):
        assert backends.run("op", masks()) == "cpu"
    monkeypatch.setenv("MEMOIR_FAST_BACKEND", "")
    assert backends.requested() == "auto"


def test_unknown_name(monkeypatch):
    message = "a backend is one of auto, reference, cpu, triton, cuda; got 'gpu'"
    with pytest.raises(BackendError) as caught, backends.use("gpu"):
        pass
    assert str(caught.value) == message
    monkeypatch.setenv("MEMOIR_FAST_BACKEND", "reference,gpu")
    with pytest.raises(BackendError) as caught:
        mask_overlap(masks(), masks())
    assert str(caught.value) == message


def test_use_nests_and_ends_with_its_block(monkeypatch):
    monkeypatch.delenv("MEMOIR_FAST_BACKEND", raising=False)
    with backends.use("cpu"):
        with backends.use("reference"):
            assert backends.requested() == "reference"
        assert backends.requested() == "cpu"
        with pytest.raises(ZeroDivisionError), backends.use("triton"):
            raise ZeroDivisionError
        assert backends.requested() == "cpu"
    assert backends.requested() == "auto"


def test_native_kernels_refuse_tensors_of_another_device():
    refuse = backends._only_on("cuda")
    assert refuse(masks()) == "needs cuda tensors, got cpu"
    assert backends._only_on("cpu")(masks()) is None


def test_what_a_kernel_refuses_when_called_at_once_is_served_by_the_next(monkeypatch):
    """A kernel's own check is the first one; what it does not take goes the way that asks each backend."""

    def refuse(*_):
        raise RuntimeError("not by me")

    monkeypatch.setattr(backends, "native_kernel", lambda *_: refuse)
    with backends.use("reference"):
        assert mask_overlap(masks(), masks()).tolist() == [[4]]
    assert backends.last_used()["mask_overlap"] == "reference"


def test_last_used_is_a_copy():
    with backends.use("reference"):
        mask_overlap(masks(), masks())
    used = backends.last_used()
    assert used["mask_overlap"] == "reference"
    used.clear()
    assert backends.last_used()["mask_overlap"] == "reference"


def test_report_has_every_op_on_every_backend():
    rows = backends.report()
    assert [(row.op, row.backend) for row in rows] == [(op, name) for op in backends.OPS for name in backends.BACKENDS]
    assert all(row.reason is None or (isinstance(row.reason, str) and row.reason) for row in rows)
    assert all(row.reason is None for row in rows if row.backend == "reference")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_report_says_why_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(backends, "load", lambda op, backend: serves(backend))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    reasons = {row.backend: row.reason for row in backends.report()}
    assert reasons == {
        "reference": None,
        "cpu": None,
        "triton": "torch sees no CUDA device (TRITON_INTERPRET=1 runs the kernels on the CPU)",
        "cuda": "built, but torch sees no CUDA device",
    }
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert {row.reason for row in backends.report() if row.backend == "triton"} == {None}


def test_a_plain_call_goes_straight_to_the_extension() -> None:
    """Not by way of the dispatcher into Python and back; the refusal is worded as everywhere."""
    pytest.importorskip("memoir_fast._C", reason="the extension was not built")
    query, store, count = torch.ones(1, 4).int(), torch.ones(2, 4).int(), torch.tensor(2).int()
    with torch.profiler.profile() as seen:
        ops.mask_match(query, store, count, 1)
    names = {event.name for event in seen.events()}
    assert "memoir_fast_native::mask_match" in names and "memoir_fast::mask_match" not in names
    assert backends.last_used()["mask_match"] == "cpu"
    with backends.use("reference"), torch.profiler.profile() as seen:
        ops.mask_match(query, store, count, 1)
    assert "memoir_fast::mask_match" in {event.name for event in seen.events()}
    assert backends.last_used()["mask_match"] == "reference"
    with pytest.raises(TypeError, match=r"store must be int32 \[C, 4\], got int64 \[2, 4\]"):
        ops.mask_match(query, store.long(), count, 1)
