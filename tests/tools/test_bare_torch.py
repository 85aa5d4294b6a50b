"""Torch without CUDA's libraries, on small ones made for it: what is missing is stood in for, and nothing else."""

import ctypes
import shutil
import subprocess
import sys

import pytest

METADATA = """Name: torch
Requires-Dist: filelock
Requires-Dist: nvidia-cudnn-cu13==9.26.0.51; platform_system == "Linux"
Requires-Dist: cuda-toolkit[cublas]==13.2.2
Requires-Dist: triton~=3.9.0

A text on nvidia-cudnn.
"""


def test_requirements_that_are_left_out(tool):
    left = [line for line in METADATA.splitlines() if "cudnn-cu13" not in line and "toolkit" not in line]
    assert tool("bare_torch").without_cuda(METADATA).splitlines() == left


def test_runtime_that_is_asked_for(tool):
    runtime = tool("bare_torch").cuda_runtime
    assert runtime(METADATA) == "cuda-toolkit[cudart]==13.2.2"
    older = 'Requires-Dist: nvidia-cuda-runtime-cu12==12.8.90; platform_system == "Linux"\n'
    assert runtime(older) == "nvidia-cuda-runtime-cu12==12.8.90"
    with pytest.raises(ValueError, match="found neither"):
        runtime("Requires-Dist: filelock\n")


def test_constraints_that_a_release_of_torch_makes_itself(tool):
    pinned = "torch==2.13.0\ntriton==3.7.1 ; x\nnvidia-nvtx==13\ncuda-toolkit==13\ntorchmetrics==1\nnumpy==2\n"
    assert tool("bare_torch").unpinned(pinned) == "torchmetrics==1\nnumpy==2\n"


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("cc"), reason="builds libraries with cc on Linux")
def test_missing_libraries_are_stood_in_for(tool, tmp_path):
    """A library that needs two others, which are gone: one whose functions have a version, and one without."""
    gone = tmp_path / "gone"
    folder = tmp_path / "lib"
    for made in (gone, folder):
        made.mkdir()
    versions = tmp_path / "versions.map"
    versions.write_text("CUDA_9 { cudaCount; };")
    sources = {"cuda": "int cudaCount() { return 0; }", "nccl": "int ncclCount() { return 0; }", "kept": "int kept(){}"}
    sources["torch"] = """int cudaCount(); int ncclCount(); int kept();
        int both() { return cudaCount() + ncclCount() + kept(); }"""
    for name, source in sources.items():
        (tmp_path / f"{name}.c").write_text(source.replace("kept(){}", "kept() { return 3; }"))
        place = gone if name in ("cuda", "nccl") else folder
        flags = ["-Wl,--version-script=" + str(versions)] if name == "cuda" else []
        flags += [f"-L{gone}", f"-L{folder}", "-lcuda_9", "-lnccl_9", "-lkept_9"] if name == "torch" else []
        flags += ["-Wl,-rpath,$ORIGIN", "-Wl,--disable-new-dtags", f"-Wl,-soname,lib{name}_9.so"]
        command = ["cc", "-w", "-shared", "-fPIC", f"{tmp_path}/{name}.c", "-o", f"{place}/lib{name}_9.so", *flags]
        subprocess.run(command, check=True)
    with pytest.raises(OSError, match=r"lib(cuda|nccl)_9"):
        ctypes.CDLL(str(folder / "libtorch_9.so"))
    assert tool("bare_torch").stand_in(folder) == ["libcuda_9.so", "libnccl_9.so"]
    loaded = "import ctypes, sys; print(ctypes.CDLL(sys.argv[1]).both())"
    ran = subprocess.run([sys.executable, "-c", loaded, folder / "libtorch_9.so"], capture_output=True, text=True)
    assert (ran.stdout, ran.stderr) == ("203\n", "")
    assert tool("bare_torch").stand_in(folder) == []
