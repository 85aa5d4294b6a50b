"""The public names: what `import memoir_fast` promises."""

import ast
import inspect
import pkgutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

import memoir_fast
from memoir_fast import errors, ops

PACKAGE = Path(memoir_fast.__file__).parent
ROOT = PACKAGE.parent


def test_all_is_sorted_and_importable():
    names = memoir_fast.__all__
    constants = [name for name in names if name.isupper()]
    assert names == sorted(constants) + sorted(set(names) - set(constants))
    for name in names:
        assert getattr(memoir_fast, name) is not None


def test_what_readers_rely_on_is_public():
    promised = {"Calibration", "Edit", "Memoir", "MemoirConfig", "MemoirError", "MemoirLinear", "TopHash", "MaskStore"}
    assert promised <= set(memoir_fast.__all__)


@pytest.mark.parametrize("name", memoir_fast.__all__)
def test_public_names_are_documented(name):
    value = getattr(memoir_fast, name)
    if inspect.isclass(value) or inspect.isfunction(value):
        assert inspect.getdoc(value), f"{name} has no docstring"
        for method, function in vars(value).items() if inspect.isclass(value) else ():
            if inspect.isfunction(function) and not method.startswith("_") and method not in ("forward", "extra_repr"):
                assert inspect.getdoc(function), f"{name}.{method} has no docstring"


def test_unknown_name():
    with pytest.raises(AttributeError, match="module 'memoir_fast' has no attribute 'Memory'"):
        memoir_fast.Memory  # noqa: B018


def test_import_is_light():
    code = (
        "import sys, memoir_fast; print([m for m in ('torch', 'transformers', 'triton', 'rich') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert run.stdout.strip() == "[]"


def test_import_neither_logs_nor_seeds():
    code = (
        "import logging, torch; before = torch.random.get_rng_state()\n"
        "import memoir_fast; [getattr(memoir_fast, name) for name in memoir_fast.__all__]\n"
        "print(torch.equal(before, torch.random.get_rng_state()), logging.getLogger().handlers)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert run.stdout.strip() == "True []"


def test_ops_are_nine_and_an_in_place_form():
    assert ops.__all__ == sorted(ops.__all__)
    assert set(ops.__all__) == {
        "code_route",
        "mask_columns",
        "mask_match",
        "mask_overlap",
        "masked_linear",
        "masked_linear_add_",
        "memory_update",
        "prompt_feature",
        "route_rows",
        "tophash",
    }


@pytest.mark.parametrize("folder", ["ops", "reference"])
def test_one_op_one_word(folder):
    files = {path.stem for path in (PACKAGE / folder).glob("[!_]*.py")}
    files -= {"popcount", "registration", "linear_limits"}  # what several share, and what one of them serves
    assert files == {name.removesuffix("_add_") for name in ops.__all__}


def test_errors_have_one_root():
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if kind.__module__ == errors.__name__]
    assert len(kinds) > 1
    assert all(issubclass(kind, memoir_fast.MemoirError) and inspect.getdoc(kind) for kind in kinds)
    assert str(errors.UnknownEditError("no edit 7")) == "no edit 7"


def test_version_is_that_of_the_distribution():
    try:
        installed = version("memoir-fast")
    except PackageNotFoundError:
        pytest.skip("memoir-fast is imported from a checkout, not installed")
    assert installed == memoir_fast.__version__


def modules():
    return [PACKAGE / "__init__.py"] + [
        Path(module.module_finder.path) / f"{module.name.rpartition('.')[2]}.py"
        for module in pkgutil.walk_packages([str(PACKAGE)], "memoir_fast.")
        if not module.ispkg and not module.name.endswith("._C")
    ]


def test_only_the_command_line_prints():
    for path in modules():
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        names = {node.func.id for node in calls if isinstance(node.func, ast.Name)}
        attributes = {node.func.attr for node in calls if isinstance(node.func, ast.Attribute)}
        if path.parent.name != "cli":
            assert "print" not in names, f"{path} prints"
        assert "basicConfig" not in attributes, f"{path} configures logging"
        assert path.name == "__init__.py" or ast.get_docstring(ast.parse(path.read_text())), f"{path} says nothing"
