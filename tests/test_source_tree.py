"""`memoir_fast.kernels` comes from the folder beside a checkout, and from nowhere else."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

_PROBE = """
import sys
path = list(sys.path)
import memoir_fast
assert sys.path == path, "sys.path was changed"
module = sys.modules.get("memoir_fast.kernels")
print(list(module.__path__) if module else None, hasattr(memoir_fast, "kernels"), "torch" in sys.modules)
"""


def tree(folder, *, outside, inside=False):
    """A copy of the package's first two files, with a kernels/ folder beside it, in it, or neither."""
    package = folder / "memoir_fast"
    package.mkdir()
    for name in ("__init__.py", "_source_tree.py"):
        (package / name).write_text((ROOT / "memoir_fast" / name).read_text())
    if outside:
        (folder / "kernels").mkdir()
        (folder / "kernels" / outside).write_text("WHERE = 'outside'\n")
    if inside:
        (package / "kernels").mkdir()
        (package / "kernels" / "_launch.py").write_text("WHERE = 'inside'\n")
    return folder


def python(folder, code):
    run = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(folder)!r})\n{code}"],
        capture_output=True,
        text=True,
        cwd=folder.parent,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_checkout_exposes_the_folder_beside(tmp_path):
    root = tree(tmp_path, outside="_launch.py")
    assert python(root, _PROBE) == f"['{root / 'kernels'}'] True False"
    code = "import memoir_fast, memoir_fast.kernels._launch as m; print(m.WHERE, 'kernels' in sys.modules)"
    assert python(root, code) == "outside False"


def test_installed_package_uses_its_own_folder(tmp_path):
    root = tree(tmp_path, outside="_launch.py", inside=True)
    assert python(root, _PROBE) == "None False False"
    assert python(root, "import memoir_fast.kernels._launch as m; print(m.WHERE)") == "inside"


@pytest.mark.parametrize("outside", ["", "layer.py"], ids=["no folder", "someone else's folder"])
def test_other_folders_are_left_alone(tmp_path, outside):
    assert python(tree(tmp_path, outside=outside), _PROBE) == "None False False"


def test_folder_is_no_package_of_its_own():
    assert not (ROOT / "kernels" / "__init__.py").exists(), "it would shadow the registry package `kernels`"
