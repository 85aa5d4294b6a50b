"""FlashInfer's top-k as a peer: where it cannot be built, the row says why; whoever comes first builds it, once."""

import stat
import threading

import pytest

NVCC = """#!/bin/sh
echo called >> "{folder}/calls"
sleep 0.2
{then}
while [ "$1" != -o ]; do shift; done
touch "$2"
"""


@pytest.fixture
def module(bench, monkeypatch, tmp_path):
    module = bench("flashinfer_topk")
    monkeypatch.setattr(module, "BUILT", tmp_path / "built")
    monkeypatch.setenv("FLASHINFER_INCLUDE", str(tmp_path / "data"))
    module.topk.cache_clear()
    return module


@pytest.fixture
def nvcc(module, monkeypatch, tmp_path):
    """A stand-in for nvcc and for the headers; `then` is a line of shell that it runs first."""

    def make(then=":"):
        for needed in ("include/flashinfer/topk.cuh", "cccl/cub/cub/device/device_batched_topk.cuh"):
            (tmp_path / "data" / needed).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "data" / needed).touch()
        path = tmp_path / "nvcc"
        path.write_text(NVCC.format(folder=tmp_path, then=then))
        path.chmod(path.stat().st_mode | stat.S_IEXEC)
        monkeypatch.setattr(module, "compiler", lambda: str(path))
        return tmp_path / "calls"

    return make


def test_without_headers_the_row_says_so(bench, module, monkeypatch):
    monkeypatch.setattr(module.torch.cuda, "get_device_capability", lambda: (9, 0))
    peer = bench("bench_tophash").flashinfer()
    assert peer.reason.endswith("data has no include/flashinfer/topk.cuh")
    monkeypatch.delenv("FLASHINFER_INCLUDE")
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda _: None)
    assert bench("bench_tophash").flashinfer().reason.startswith("flashinfer is not installed, and FLASHINFER_INCLUDE")


def test_without_nvcc_the_row_says_so(bench, module, nvcc, monkeypatch):
    real = module.compiler
    nvcc()
    monkeypatch.setattr(module, "compiler", real)
    monkeypatch.setattr(module.torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(module.shutil, "which", lambda *_, **__: None)
    assert bench("bench_tophash").flashinfer().reason == "nvcc is not there to build FlashInfer's top-k"


def test_built_once_though_two_ask(module, nvcc):
    calls, found = nvcc(), []
    threads = [threading.Thread(target=lambda: found.append(module.library((9, 0)))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1] and found[0].is_file() and "sm90" in found[0].name
    assert calls.read_text() == "called\n"


def test_the_include_folder_itself_may_be_named(module, nvcc, monkeypatch, tmp_path):
    nvcc()
    monkeypatch.setenv("FLASHINFER_INCLUDE", str(tmp_path / "data" / "include"))
    assert module.headers()[0] == tmp_path / "data" / "include"


def test_what_nvcc_complains_of_is_said(module, nvcc):
    nvcc(then="echo 'x.cu(3): error: no such thing' >&2; exit 2")
    with pytest.raises(LookupError, match=r"does not build: x.cu\(3\): error: no such thing"):
        module.library((9, 0))
