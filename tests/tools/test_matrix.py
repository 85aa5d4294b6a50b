"""The driver of the matrix, without a registry: what it runs, what it counts, and its exit code."""

import importlib.metadata
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

JUNIT = """<?xml version="1.0"?><testsuites><testsuite name="pytest" errors="1" failures="2" skipped="3" tests="10">
<testcase classname="a" name="b"/></testsuite></testsuites>"""
REPORT = """{"install": [
  {"metadata": {"name": "transformers", "version": "5.10.1"}, "download_info": {"url": "https://x/t-5.10.1.whl"}},
  {"metadata": {"name": "huggingface_hub", "version": "1.3"}, "download_info": {"url": "https://x/a/h-1.3.whl"}}]}"""


@pytest.fixture
def passed(tool, monkeypatch, tmp_path):
    """The matrix with parts that answer at once; returns the calls."""
    matrix, versions = tool("matrix"), tool("versions")
    calls = []

    def part(name, **outcome):
        def run(*arguments):
            calls.append((name, *arguments))
            return [versions.row(name, "1.0", {}, "2026-01-02", **outcome)]

        return run

    page = tmp_path / "versions.md"
    page.write_text(f"{versions.BEGIN}\n{versions.END}\n")
    monkeypatch.setattr(versions, "PAGE", page)
    monkeypatch.setattr(versions, "RESULTS", tmp_path / "matrix.json")
    monkeypatch.setattr(matrix, "newest", lambda python, name: {"transformers": "9.0.0", "torch": "3.0.0"}[name])
    monkeypatch.setattr(matrix, "on_transformers", part("transformers", passed=1, failed=0, skipped=0))
    monkeypatch.setattr(matrix, "with_headers", part("torch headers", built=True))
    monkeypatch.setattr(matrix, "on_pythons", part("python", absent="why"))
    monkeypatch.setattr(matrix, "on_torch", part("torch", passed=1, failed=0, skipped=0))
    return calls


def test_whole_matrix(tool, passed):
    matrix = tool("matrix")
    assert matrix.main([]) == 0
    assert passed == [
        ("transformers", ["5.10.1", "5.17.0", "9.0.0"], matrix.TESTS),
        ("torch headers", ["2.10.0", "2.11.0", "3.0.0"]),
        ("python", False),
    ]
    assert len(tool("versions").read()) == 3


@pytest.mark.parametrize(
    ("installed", "run"),
    [("8.0.0", ["5.10.1", "9.0.0"]), ("9.0.0", ["5.10.1"]), ("5.10.1", ["9.0.0"])],
)
def test_quick_writes_nothing_and_leaves_the_installed_release_to_the_suite(tool, passed, monkeypatch, installed, run):
    matrix = tool("matrix")
    monkeypatch.setattr(importlib.metadata, "version", {"transformers": installed}.__getitem__)
    assert matrix.main(["--quick"]) == 0
    assert passed == [("transformers", run, matrix.QUICK)]
    assert tool("versions").read() == []


def test_a_release_of_torch_alone(tool, passed):
    asked = ["--torch", "2.15.0", "--on", "3.13"]
    assert tool("matrix").main(asked) == 0 == tool("matrix").main([*asked, "--transformers", "5.10.1"])
    assert passed == [("torch", "2.15.0", "3.13", None), ("torch", "2.15.0", "3.13", "5.10.1")]
    assert [one["part"] for one in tool("versions").read()] == ["torch"]


@pytest.mark.parametrize("asked", [["--torch", "2.15.0"], ["--on", "3.13"], ["--transformers", "5.10.1"]])
def test_half_of_what_a_release_of_torch_needs(tool, passed, capsys, asked):
    with pytest.raises(SystemExit):
        tool("matrix").main(asked)
    assert "belong together" in capsys.readouterr().err and passed == []


def test_torch_gets_an_environment_of_its_own_once(tool, tmp_path, monkeypatch):
    """Not on this Python: the extension is built in place, and would take that of the environment that runs this."""
    matrix = tool("matrix")
    ran, installed = [], []
    monkeypatch.setattr(matrix, "WORK", tmp_path)
    pythons = {"3.11": Path(sys.executable), "3.13": Path("/opt/python3.13")}
    monkeypatch.setattr(matrix.pythons, "interpreters", lambda: pythons)
    for minor in ("3.11", "3.12"):
        with pytest.raises(SystemExit, match="another Python"):
            matrix.on_torch("2.15.0", minor, None)
    folder = tmp_path / "torch-2.15.0-py3.13"

    def run(command, **options):
        ran.append((command[0], options.get("env", {}).get("MEMOIR_FAST_CUDA")))
        folder.mkdir(exist_ok=True)
        if command[0] == "make":
            assert f"CONSTRAINTS={folder}/constraints.txt" in command and "TORCH=torch==2.15.0" in command
            assert "\ntorch==" not in (folder / "constraints.txt").read_text()
            (folder / ".installed").touch()

    seen = {"torch": "2.15.0+cu132", "transformers": "5.24.0", "python": "3.13.0"}
    monkeypatch.setattr(matrix.subprocess, "run", run)
    monkeypatch.setattr(matrix.bare_torch, "install", lambda *arguments: installed.append(arguments))
    monkeypatch.setattr(matrix, "at_work", lambda *_: seen)
    monkeypatch.setattr(matrix, "tests", lambda *_: {"passed": 5, "failed": 0, "skipped": 0})
    (row,) = matrix.on_torch("2.15.0", "3.13", None)
    assert row["beside"] == {"build": "cu132 without CUDA's libraries", "transformers": "5.24.0", "Python": "3.13.0"}
    assert matrix.on_torch("2.15.0", "3.13", None) == [row]
    assert ran == [("/opt/python3.13", None), ("make", "0")]
    assert installed == [(folder / "bin" / "python", "2.15.0")]
    seen["torch"] = "2.14.1"
    with pytest.raises(SystemExit, match=r"expected torch 2\.15\.0"):
        matrix.on_torch("2.15.0", "3.13", None)


def test_a_failure_is_written_and_told(tool, passed, monkeypatch):
    row = tool("versions").row
    failed = [row("torch headers", "2.10.0", {}, "2026-01-02", built=False)]
    monkeypatch.setattr(tool("matrix"), "with_headers", lambda releases: failed)
    assert tool("matrix").main(["--only", "torch headers"]) == 1
    assert tool("versions").read() == failed


def test_registry_that_does_not_answer(tool, passed, monkeypatch, capsys):
    """A stand-in for pip that fails as pip does."""
    registry, matrix = tool("registry"), tool("matrix")
    monkeypatch.setattr(matrix, "newest", registry.newest)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1, "", "no route to host"))
    assert matrix.main(["--quick"]) == 2
    told = capsys.readouterr().err
    assert "index versions transformers failed, which needs the package registry" in told
    assert "no route to host" in told
    assert passed == [] and tool("versions").read() == []


def test_selections_exist(tool):
    matrix = tool("matrix")
    for name in matrix.TESTS:
        assert (tool("versions").ROOT / name).exists(), name
    assert set(matrix.QUICK) < set(matrix.TESTS)


def test_counts_of_a_report(tool):
    assert tool("matrix").counts(JUNIT) == {"passed": 4, "failed": 3, "skipped": 3}


def test_tests_are_counted_and_see_what_is_laid_over(tool, tmp_path, monkeypatch):
    matrix = tool("matrix")
    (tmp_path / "over").mkdir()
    (tmp_path / "over" / "laid.py").write_text("VERSION = 7\n")
    (tmp_path / "test_one.py").write_text("def test_it():\n    import laid\n    assert laid.VERSION == 7\n")
    (tmp_path / "test_two.py").write_text("def test_it():\n    assert False\n")
    monkeypatch.setattr(matrix, "ROOT", tmp_path)
    monkeypatch.setattr(matrix, "WORK", tmp_path / "work")
    monkeypatch.setattr(matrix, "PYTEST", ("-q",))
    selection = ("test_one.py", "test_two.py", "not there")
    assert matrix.tests(Path(sys.executable), selection, tmp_path / "over") == {"passed": 1, "failed": 1, "skipped": 0}


def test_tests_that_never_began_failed(tool, tmp_path, monkeypatch):
    matrix = tool("matrix")
    monkeypatch.setattr(matrix, "WORK", tmp_path)
    monkeypatch.setattr(matrix, "PYTEST", ("--no-such-option",))
    assert matrix.tests(Path(sys.executable), ())["failed"] == 1


def test_report_of_pip(tool):
    planned = tool("registry").planned(REPORT)
    assert planned == {"transformers": ("5.10.1", "t-5.10.1.whl"), "huggingface-hub": ("1.3", "h-1.3.whl")}


@pytest.mark.parametrize("plan", [{"transformers": ("5.1", "t.whl"), "tokenizers": ("0.2", "k.whl")}, {}])
def test_overlay_holds_what_pip_would_change_and_nothing_else(tool, tmp_path, monkeypatch, plan):
    registry = tool("registry")
    calls = []
    monkeypatch.setattr(registry, "would_install", lambda *arguments: plan)
    monkeypatch.setattr(registry, "pip", lambda *arguments, **_: calls.append(arguments))
    folder = tmp_path / "over"
    held = registry.overlay("python", folder, "transformers", "5.1")
    assert held == {name: version for name, (version, _) in plan.items()}
    pins = ("transformers==5.1", "tokenizers==0.2")
    assert calls == ([("python", "install", "-q", "--no-deps", "--target", folder, *pins)] if plan else [])
    monkeypatch.setattr(registry, "would_install", None)
    assert registry.overlay("python", folder, "transformers", "5.1") == held


def test_headers_pass_for_an_installed_torch(tool, tmp_path, monkeypatch):
    registry = tool("registry")

    def download(*arguments, **_):
        folder = Path(arguments[arguments.index("-d") + 1])
        folder.mkdir()
        with zipfile.ZipFile(folder / "torch-2.10.0-any.whl", "w") as wheel:
            for name in ("torch/include/a.h", "torch/nn/b.py", "torch-2.10.0.dist-info/METADATA", "torch-2/RECORD"):
                wheel.writestr(name, name)

    monkeypatch.setattr(registry, "pip", download)
    folder = registry.headers("python", tmp_path / "torch", "2.10.0", tmp_path)
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    wanted = {"torch/include/a.h", "torch-2.10.0.dist-info/METADATA", "torch/__init__.py", "complete.json"}
    assert files - {f"torch/lib/{path.relative_to(tmp_path)}" for path in tmp_path.rglob("*")} == wanted
    assert (folder / "torch" / "lib").resolve() == tmp_path


def test_interpreters_run(tool):
    found = tool("pythons").interpreters()
    minor = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if minor in tool("pythons").MINORS:
        assert found[minor] == Path(sys.executable)
    for name, path in found.items():
        assert tool("pythons").version(path).startswith(f"{name}.")


def test_interpreter_that_only_seems_to_be_there(tool, tmp_path, monkeypatch):
    pythons = tool("pythons")
    fake = tmp_path / "python3.12"
    fake.write_text("#!/bin/sh\necho 'pyenv: python3.12: command not found' >&2\nexit 127\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    assert pythons.interpreters().get("3.12") != fake
    assert pythons.version(tmp_path / "none") is None


def test_missing_interpreter_is_said(tool):
    row = tool("matrix").on_python("3.13", None, [], False)
    assert tool("versions").good(row) and "none on the machine" in tool("versions").outcome(row)


def test_source_that_a_python_cannot_read(tool, tmp_path):
    (tmp_path / "good.py").write_text("x = 1\n")
    (tmp_path / "bad.py").write_text("x = = 1\n")
    compiles = tool("pythons").compiles
    assert compiles(Path(sys.executable), [tmp_path / "good.py"]) is None
    assert "SyntaxError" in compiles(Path(sys.executable), [tmp_path / "good.py", tmp_path / "bad.py"])
    row = tool("matrix").on_python("3.11", Path(sys.executable), [tmp_path / "bad.py"], False)
    assert row["failed"] == 1
