"""The package imports and runs from a wheel, editable, from a bare checkout, and beside the registry's `kernels`."""

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Where the package and its kernels come from, whether its data is there, and one op run by the reference.
_PROBE = """
import importlib.util, pathlib
import memoir_fast
print(pathlib.Path(memoir_fast.__file__).parent)
print(importlib.util.find_spec("memoir_fast.kernels.tophash").origin)
data = pathlib.Path(memoir_fast.__file__).parent / "data"
assert (data / "facts.jsonl").is_file() and (data / "irrelevant.txt").is_file(), list(data.parent.iterdir())
import torch
from memoir_fast import backends
from memoir_fast.ops import tophash
with backends.use("reference"):
    assert tophash(torch.tensor([[0.1, -5.0, 5.0]]), 2, torch.arange(3).int())[1].tolist() == [[1, 2]]
"""

_WITH_TRANSFORMERS = """
import memoir_fast
from transformers import LlamaForCausalLM
from transformers.integrations import hub_kernels
from transformers.utils.import_utils import is_kernels_available
print(is_kernels_available())
assert importlib.util.find_spec("memoir_fast.kernels.tophash")
"""


def python(code, cwd, *path):
    """Runs `code` in a new process whose PYTHONPATH is `path`; returns its lines."""
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(map(str, path)), PYTHONDONTWRITEBYTECODE="1")
    run = subprocess.run(
        [sys.executable, "-c", "import importlib.util\n" + code],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=env,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel without the extension, built from a copy of the sources, so that nothing is left in the tree."""
    for module, oldest in (("pip", 22), ("setuptools", 77), ("wheel", 0)):
        if importlib.util.find_spec(module) is None or int(importlib.metadata.version(module).split(".")[0]) < oldest:
            pytest.skip(f"building a wheel needs {module} >= {oldest}")
    folder = tmp_path_factory.mktemp("wheel")
    sources = folder / "sources"
    for name in ("memoir_fast", "kernels", "csrc"):
        shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__", "*.so", "_build*"))
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "--no-index"]
    env = dict(os.environ, MEMOIR_FAST_BUILD="0")
    run = subprocess.run([*command, "-w", folder, sources], capture_output=True, text=True, env=env, check=False)
    assert run.returncode == 0, run.stderr
    (built,) = folder.glob("memoir_fast-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", target, wheel]
    subprocess.run(command, check=True, capture_output=True)
    return target


@pytest.fixture
def registry_kernels(tmp_path):
    """A stand-in for the registry's package `kernels`: importable, with metadata, older than transformers wants."""
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("MARKER = 'registry'\n__version__ = '0.0.1'\n")
    (tmp_path / "kernels-0.0.1.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: kernels\nVersion: 0.0.1\n"
    (tmp_path / "kernels-0.0.1.dist-info" / "METADATA").write_text(metadata)
    return tmp_path


def test_wheel_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {Path(name).parts[0].split("-")[0] for name in names} == {"memoir_fast"}
    missing = {f"memoir_fast/kernels/{path.name}" for path in (ROOT / "kernels").glob("*.*")} - set(names)
    assert not missing
    for needed in ("py.typed", "data/facts.jsonl", "data/unrelated.jsonl", "data/irrelevant.txt", "kernels/tophash.py"):
        assert f"memoir_fast/{needed}" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_wheel_runs(installed, tmp_path):
    assert python(_PROBE, tmp_path, installed) == [
        str(installed / "memoir_fast"),
        str(installed / "memoir_fast" / "kernels" / "tophash.py"),
    ]


def test_wheel_runs_where_a_folder_is_named_kernels(installed, tmp_path):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "tophash.py").write_text("raise ImportError('the wrong folder')\n")
    assert python(_PROBE, tmp_path, installed)[1] == str(installed / "memoir_fast" / "kernels" / "tophash.py")


def test_editable_install_runs(tmp_path):
    try:
        distribution = importlib.metadata.distribution("memoir-fast")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("memoir-fast is not installed in this environment")
    if "editable" not in (distribution.read_text("direct_url.json") or ""):
        pytest.skip("memoir-fast is installed here, but not editable")
    assert python(_PROBE, tmp_path) == [str(ROOT / "memoir_fast"), str(ROOT / "kernels" / "tophash.py")]
    assert any(point.name == "memoir" for point in distribution.entry_points)


@pytest.mark.parametrize("inside", [True, False], ids=["in the root", "elsewhere"])
def test_checkout_runs(tmp_path, inside):
    lines = python(_PROBE, ROOT if inside else tmp_path, ROOT)
    assert lines == [str(ROOT / "memoir_fast"), str(ROOT / "kernels" / "tophash.py")]


def test_registry_package_kernels_wins(registry_kernels):
    code = "import kernels; print(kernels.MARKER)" + _WITH_TRANSFORMERS + "print(kernels.MARKER)"
    assert python(code, ROOT, registry_kernels) == ["registry", "False", "registry"]
    assert python(code, ROOT, ROOT, registry_kernels) == ["registry", "False", "registry"]


def test_transformers_works_in_a_checkout_without_it():
    if importlib.util.find_spec("kernels") is not None:
        pytest.skip("the registry's package kernels is installed here")
    assert python(_WITH_TRANSFORMERS, ROOT, ROOT) == ["False"]
