"""The built file as torch sees it: schemas, fakes, opcheck, and which CPU path runs."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from memoir_fast import backends, native
from memoir_fast.errors import BackendError
from memoir_fast.mask_format import pack
from memoir_fast.ops import mask_match

STORE = pack(torch.arange(300) % torch.arange(2, 12)[:, None] == 0)
X = torch.randn(2, 1, 12)
SAMPLES = {
    "mask_overlap": (STORE[:3], STORE),
    "mask_match": (STORE[:3], STORE, torch.tensor(10, dtype=torch.int32), torch.full((10,), 4, dtype=torch.int32)),
    "tophash": (torch.randn(2, 12), 3, torch.randperm(12).int()),
    "mask_columns": (STORE[:3], 7),
    "route_rows": (STORE, torch.arange(10).int() % 3, torch.tensor([4, -1, 9, 4]).int(), 7, 300),
    "code_route": (*torch.randint(0, 4, (2, 5, 3)).int(), *torch.randint(0, 4, (2, 4)).int()),
    "prompt_feature": (torch.randn(2, 5, 12), torch.ones(2, 5, dtype=torch.bool), torch.zeros(12)),
    "masked_linear": (X, torch.randn(12, 8), torch.tensor([[0, 3, 4]]).int(), torch.zeros(2).int()),
    "masked_linear_add_": (
        torch.zeros(2, 1, 8),
        X,
        torch.randn(12, 8),
        torch.tensor([[0, 3]]).int(),
        torch.zeros(2).int(),
    ),
}


def test_every_op_has_a_sample(extension):
    assert set(extension.ops("cpu")) == set(SAMPLES)
    assert extension.ops("reference") == {}


@pytest.mark.parametrize("op", SAMPLES)
def test_opcheck(raw, op):
    torch.library.opcheck(getattr(raw, op).default, SAMPLES[op])


@pytest.mark.parametrize("op", SAMPLES)
def test_compiles_without_a_graph_break(raw, op):
    torch.compiler.reset()  # a function is compiled for so many arguments and no more

    @torch.compile(fullgraph=True, backend="aot_eager")
    def run(*arguments):
        return getattr(raw, op)(*arguments)

    copies = [value.clone() if isinstance(value, torch.Tensor) else value for value in SAMPLES[op]]
    again = [value.clone() if isinstance(value, torch.Tensor) else value for value in SAMPLES[op]]
    result, expected = run(*copies), getattr(raw, op)(*again)
    torch.testing.assert_close((result, copies[0]), (expected, again[0]), rtol=0, atol=0)


def test_public_op_runs_on_the_extension(extension):
    edit, overlap = mask_match(*SAMPLES["mask_match"])
    assert backends.last_used()["mask_match"] == "cpu"
    assert edit.tolist() == [0, 1, 0]  # every multiple of 4 is one of 2, and row 0 comes first


@pytest.mark.parametrize("op", SAMPLES)
def test_a_file_built_before_an_op_changed_is_refused(raw, op):
    """Its functions' own types are compared with what the op asks for now."""
    before = [str(argument.type) for argument in getattr(raw, op).default._schema.arguments]
    with pytest.raises(ImportError, match=rf"its {op} takes \({', '.join(before)}\), not \(Tensor\); build it again"):
        native.load(op, "cpu", "(Tensor x) -> Tensor", lambda x: x)
    assert [str(argument.type) for argument in getattr(raw, op).default._schema.arguments] == before


def test_a_file_that_defines_its_ops_itself_is_refused(extension, monkeypatch):
    """As those did that were built before schemas were written once; it lists names alone."""
    monkeypatch.setattr(native, "extension", lambda: SimpleNamespace(ops=lambda _: ["tophash"]))
    with pytest.raises(ImportError, match="older than its sources: build it again: pip install"):
        native.load("tophash", "cpu", "(Tensor x) -> Tensor", lambda x: x)


def test_schema_and_fake_are_the_ops_own(raw):
    for op in SAMPLES:
        ours, theirs = getattr(torch.ops.memoir_fast, op).default._schema, getattr(raw, op).default._schema
        assert str(ours).replace("memoir_fast::", "") == str(theirs).replace("memoir_fast_native::", "")


def test_build_info(extension):
    info = extension.build_info()
    assert info["torch_target"] == "2.10"
    assert info["compiler"]
    assert bool(info["cuda"]) == bool(extension.ops("cuda")) == bool(info["cuda_architectures"])


def test_cpu_path_is_forced_by_the_environment(extension):
    """A name that there is not is an error of its own: it is not as if there were no extension."""
    program = (
        "import torch; from memoir_fast import native, ops\n"
        "ops.mask_overlap(torch.ones(1, 4).int(), torch.ones(1, 4).int()); print(native.extension().cpu_path())"
    )

    def run(path: str) -> subprocess.CompletedProcess:
        env = {**os.environ, "MEMOIR_FAST_CPU": path}
        return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env)

    assert run("portable").stdout.strip() == "portable"
    refused = run("sse")
    message = "BackendError: MEMOIR_FAST_CPU must be auto, avx512, avx2 or portable, got 'sse'"
    assert refused.returncode and message in refused.stderr


def test_a_cpu_path_that_this_machine_cannot_run_is_named(extension, monkeypatch):
    def lacking(_):
        raise RuntimeError("this CPU lacks the instructions of the path avx512")

    monkeypatch.setenv("MEMOIR_FAST_CPU", "avx512")
    monkeypatch.setattr(native.importlib, "import_module", lacking)
    with pytest.raises(BackendError, match="MEMOIR_FAST_CPU=avx512: this CPU lacks the instructions"):
        native.extension.__wrapped__()


def test_wrong_cpu_path_is_refused(extension):
    with pytest.raises(ValueError, match="a CPU path is auto, avx512, avx2 or portable, got neon"):
        extension.set_cpu_path("neon")


def test_reason_of_a_build_without_the_extension(monkeypatch, tmp_path):
    reason = tmp_path / "_build_failure.txt"
    reason.write_text("no ninja found\n")
    monkeypatch.setattr(native, "_REASON", reason)
    monkeypatch.setitem(sys.modules, "memoir_fast._C", None)
    with pytest.raises(ImportError, match="no ninja found"):
        native.extension.__wrapped__()
    reason.unlink()
    with pytest.raises(ImportError, match="no-build-isolation"):
        native.extension.__wrapped__()


def test_op_without_a_kernel(extension):
    with pytest.raises(ImportError, match="no cpu kernel for memory_update"):
        native.load("memory_update", "cpu", "(Tensor x) -> ()", lambda x: None)
