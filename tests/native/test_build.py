"""setup.py: what is built, what is left out and which words say why."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest

for package in ("setuptools", "ninja", "pybind11"):
    pytest.importorskip(package, reason=f"building needs {package}, which is not installed")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tree(tmp_path):
    """A copy of the source tree with a csrc/ of one file that fails to compile at once."""
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("memoir_fast", "kernels"):
        ignored = shutil.ignore_patterns("*.so", "__pycache__", "_build_failure.txt")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "broken.cpp").write_text('#error "a message of the compiler"\n')
    return tmp_path


def build(tree: Path, *command: str, **env: str) -> subprocess.CompletedProcess:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MEMOIR_FAST", "TORCH_CUDA"))}
    return subprocess.run(
        [sys.executable, "setup.py", *(command or ("build_ext", "--inplace"))],
        cwd=tree, capture_output=True, text=True, env={**clean, **env},
    )  # fmt: skip


def reason(tree: Path) -> str:
    return (tree / "memoir_fast" / "_build_failure.txt").read_text()


def test_failed_build_leaves_the_reason_and_no_stale_file(tree):
    stale = tree / "memoir_fast" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    stale.write_bytes(b"old")
    assert build(tree, MEMOIR_FAST_CUDA="0").returncode == 0
    assert "a message of the compiler" in reason(tree)
    assert not stale.exists()


def test_required_build_fails_with_the_compilers_message(tree):
    result = build(tree, MEMOIR_FAST_BUILD="1", MEMOIR_FAST_CUDA="0")
    assert result.returncode != 0
    assert "a message of the compiler" in result.stderr


def test_build_can_be_switched_off(tree):
    assert build(tree, MEMOIR_FAST_BUILD="0").returncode == 0
    assert "MEMOIR_FAST_BUILD=0" in reason(tree)


def test_no_compiler(tree):
    empty = tree / "empty"
    empty.mkdir()
    assert build(tree, PATH=str(empty), CXX="", MEMOIR_FAST_CUDA="0").returncode == 0
    assert "no C++ compiler found" in reason(tree)
    result = build(tree, PATH=str(empty), CXX="", MEMOIR_FAST_CUDA="0", MEMOIR_FAST_BUILD="1")
    assert result.returncode != 0 and "no C++ compiler found" in result.stderr


def test_no_torch(tree):
    """As in an isolated build environment: setuptools, and nothing else."""
    program = """
import importlib.util, runpy, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "torch" else find(name, package)
sys.argv = ["setup.py", "build_ext", "--inplace"]
runpy.run_path("setup.py", run_name="__main__")
"""
    env = {**os.environ, "MEMOIR_FAST_CUDA": "0"}
    subprocess.run([sys.executable, "-c", program], cwd=tree, env=env, check=True, capture_output=True)
    assert "torch is not in the build environment" in reason(tree)
    assert "--no-build-isolation" in reason(tree)


def test_pybind11_is_not_torchs_copy(tree):
    """torch 2.10 and 2.11 ship a pybind11 that refuses to be included where TORCH_TARGET_VERSION is defined."""
    old = tree / "old"
    (old / "torch" / "include" / "pybind11").mkdir(parents=True)
    (old / "torch" / "__init__.py").touch()
    (old / "torch" / "include" / "pybind11" / "pybind11.h").write_text('#error "the copy in torch"\n')
    (old / "torch-2.10.0.dist-info").mkdir()
    (old / "torch-2.10.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.10.0\n")
    (tree / "csrc" / "broken.cpp").write_text('#include <pybind11/pybind11.h>\n#error "included it"\n')
    assert build(tree, MEMOIR_FAST_CUDA="0", PYTHONPATH=str(old)).returncode == 0
    assert "included it" in reason(tree)
    assert "the copy in torch" not in reason(tree)
    assert f"-isystem {old / 'torch' / 'include'} " in next((tree / "build").rglob("build.ninja")).read_text()


@pytest.mark.skipif(not shutil.which("nvcc"), reason="architectures are read only where nvcc is")
def test_unreadable_architectures(tree):
    result = build(tree, MEMOIR_FAST_BUILD="1", TORCH_CUDA_ARCH_LIST="8.0;Hopper")
    assert result.returncode != 0
    assert "TORCH_CUDA_ARCH_LIST: cannot read 'Hopper'" in result.stderr


def test_sdist_and_wheel_contents(tree):
    shutil.rmtree(tree / "csrc")
    shutil.copytree(ROOT / "csrc", tree / "csrc")
    result = build(tree, "sdist", "bdist_wheel", MEMOIR_FAST_BUILD="0")
    assert result.returncode == 0, result.stderr
    with tarfile.open(next((tree / "dist").glob("*.tar.gz"))) as archive:
        packed = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    sources = {f"csrc/{path.name}" for path in (ROOT / "csrc").iterdir()}
    sources |= {f"kernels/{path.name}" for path in (ROOT / "kernels").glob("*.py")}
    assert sources | {"setup.py", "pyproject.toml", "memoir_fast/native.py"} <= packed
    listing = subprocess.run(
        [sys.executable, "-m", "zipfile", "-l", next((tree / "dist").glob("*.whl"))], capture_output=True, text=True
    ).stdout
    assert "memoir_fast/native.py" in listing and "memoir_fast/_build_failure.txt" in listing
    for path in (ROOT / "kernels").glob("*.py"):
        assert f"memoir_fast/kernels/{path.name}" in listing
