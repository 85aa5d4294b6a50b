"""Runs the tests that meet transformers on several of its releases, builds the extension against the headers of several
releases of torch, and runs the tests on the Pythons of this machine. `make matrix` calls it.

    python tools/matrix.py [--only PART ...] [--quick] [--cuda-torch] [--check]
    python tools/matrix.py --torch 2.15.0 --on 3.13 [--transformers 5.24.0]

Without --quick, the outcome goes to docs/results/matrix.json and into docs/versions.md: commit both. The exit code is
1 where a test failed or a build did not succeed, 2 where the registry did not answer.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import bare_torch
import pythons
import versions
from registry import RegistryError, headers, newest, overlay
from versions import ROOT, Row, row

WORK = ROOT / ".matrix"
PARTS = tuple(part for part in versions.PARTS if part != "torch")  # that one where it is asked for: 3 GB a release
OLDEST, BETWEEN = "5.10.1", "5.17.0"
OLD_TORCHES = ("2.10.0", "2.11.0")
QUICK = ("tests/hf", "tests/integrations", "tests/test_memoir.py", "tests/io/test_checkpoint.py")
TESTS = (*QUICK, "tests/core/test_background.py", "tests/editing/test_wordings.py", "tests/editing/test_stop.py")
WITH_TORCH = ("tests/ops", "tests/modules", "tests/editing", "tests/test_docstrings.py", *QUICK)
PYTEST = ("-q", "-r", "fE", "-n", "2", "--dist", "worksteal", "--timeout=600", "-p", "no:cacheprovider")
_VERSIONS = """
import importlib.metadata, json, pathlib, platform
import memoir_fast, tokenizers, torch, transformers
print(json.dumps({
    "memoir_fast": str(pathlib.Path(memoir_fast.__file__).parent.parent), "python": platform.python_version(),
    "torch": torch.__version__, "transformers": transformers.__version__, "tokenizers": tokenizers.__version__,
    "huggingface_hub": importlib.metadata.version("huggingface_hub"),
}))
"""
_LOAD = """
import importlib.util, json, sys, torch
spec = importlib.util.spec_from_file_location("memoir_fast._C", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(json.dumps(module.build_info()))
"""


def today() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")


def environment(*first: Path) -> dict[str, str]:
    """This process's, with folders before site-packages."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return {**kept, "PYTHONPATH": os.pathsep.join(map(str, first))}


def at_work(python: Path, *first: Path) -> dict[str, str]:
    """The versions that the tests will see, and where they find the package."""
    ran = subprocess.run(
        [str(python), "-c", _VERSIONS], cwd=ROOT, env=environment(*first), capture_output=True, text=True
    )
    if ran.returncode:
        raise SystemExit(f"transformers does not import in {python}:\n{ran.stderr[-2000:]}")
    return json.loads(ran.stdout.splitlines()[-1])


def tests(python: Path, selection: tuple[str, ...], *first: Path) -> dict[str, int]:
    """Runs tests, whose output is shown, and returns how many passed, failed and were skipped."""
    WORK.mkdir(exist_ok=True)
    report = WORK / f"junit-{os.getpid()}.xml"
    chosen = [name for name in selection if (ROOT / name).exists()]
    command = [str(python), "-m", "pytest", *PYTEST, f"--junitxml={report}", *chosen]
    subprocess.run(command, cwd=ROOT, env=environment(*first))
    if not report.is_file():  # pytest itself failed
        return {"passed": 0, "failed": 1, "skipped": 0}
    found = counts(report.read_text())
    report.unlink()
    return found


def counts(report: str) -> dict[str, int]:
    """Passed, failed and skipped in a JUnit report; an error counts as failed."""
    suite = next(ElementTree.fromstring(report).iter("testsuite"))
    ran, failed, errors, skipped = (int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped"))
    return {"passed": ran - failed - errors - skipped, "failed": failed + errors, "skipped": skipped}


def on_transformers(releases: list[str], selection: tuple[str, ...]) -> list[Row]:
    """One row per release of transformers, laid over this environment."""
    rows = []
    python = Path(sys.executable)
    for release in releases:
        folder = WORK / f"transformers-{release}-py{sys.version_info[0]}.{sys.version_info[1]}"
        overlay(python, folder, "transformers", release)
        seen = at_work(python, folder)
        if seen["transformers"] != release or Path(seen["memoir_fast"]) != ROOT:
            raise SystemExit(f"expected transformers {release} and the package of {ROOT}, got {seen}")
        print(f"== transformers {release}, {seen}", flush=True)
        beside = {name: seen[name] for name in ("huggingface_hub", "tokenizers", "torch")}
        beside["Python"] = seen["python"]
        rows.append(row("transformers", release, beside, today(), **tests(python, selection, folder)))
    return rows


def with_headers(releases: list[str]) -> list[Row]:
    """One row per release of torch: the extension built by setup.py against its headers, and loaded by this torch."""
    import torch  # here, so that --check and the tests of this file's logic need none

    rows = []
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    for release in releases:
        folder = headers(sys.executable, WORK / f"torch-{release}", release, Path(torch.__file__).parent / "lib")
        print(f"== headers of torch {release}, {nvcc or 'no nvcc: without CUDA'}", flush=True)
        built = WORK / f"built-{release}"
        shutil.rmtree(built, ignore_errors=True)
        setting = {"MEMOIR_FAST_BUILD": "1", "TORCH_CUDA_ARCH_LIST": os.environ.get("TORCH_CUDA_ARCH_LIST", "9.0")}
        setting["MEMOIR_FAST_CUDA"] = "1" if nvcc else "0"
        command = [sys.executable, "setup.py", "-q", "build_ext", f"--build-lib={built}", f"--build-temp={built}/temp"]
        ran = subprocess.run(
            command, cwd=ROOT, env={**environment(folder), **setting}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        if ran.returncode:
            print(ran.stdout.decode(errors="replace"), flush=True)
        file = built / "memoir_fast" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
        info = loaded(file) if ran.returncode == 0 else None
        if info and info["torch_headers"] != release:
            raise SystemExit(f"expected a build against torch {release}, got {info}")
        beside = {"torch": torch.__version__, "Python": pythons.version(sys.executable) or ""}
        beside |= {"CUDA": info["cuda"] or "none"} if info else {}
        rows.append(row("torch headers", release, beside, today(), built=info is not None))
    return rows


def loaded(file: Path) -> dict[str, str] | None:
    """What a built extension says of itself, in a process with this torch; None where it does not load."""
    ran = subprocess.run([sys.executable, "-c", _LOAD, str(file)], env=environment(), capture_output=True, text=True)
    print(ran.stdout or ran.stderr[-2000:], flush=True)
    return json.loads(ran.stdout) if ran.returncode == 0 else None


def on_pythons(cuda_torch: bool) -> list[Row]:
    """One row per minor version of Python: the sources compiled, and the tests run where torch is to be had."""
    found = pythons.interpreters()
    sources = [ROOT / "setup.py"]
    for folder in ("memoir_fast", "kernels", "tests", "bench", "tools"):
        sources += (ROOT / folder).rglob("*.py")
    return [on_python(minor, found.get(minor), sources, cuda_torch) for minor in pythons.MINORS]


def on_python(minor: str, python: Path | None, sources: list[Path], cuda_torch: bool) -> Row:
    """The row of one minor version."""
    if python is None:
        return row("python", minor, {}, today(), absent="there is none on the machine")
    full = pythons.version(python) or minor
    print(f"== Python {full}: {python}", flush=True)
    error = pythons.compiles(python, sources)
    if error:
        print(error, flush=True)
        return row("python", full, {}, today(), passed=0, failed=1, skipped=0)
    if python != Path(sys.executable):
        folder = WORK / f"python-{minor}"
        installed = (folder / ".installed").is_file()
        if not installed and not cuda_torch and not pythons.cpu_torch(python, ROOT / "constraints.txt"):
            reason = (
                f"torch comes for it as a CUDA build of 3 GB only (--cuda-torch); all {len(sources)} sources compile"
            )
            return row("python", full, {}, today(), absent=reason)
        command = ["make", "venv", f"VENV={folder}", f"PYTHON={python}"]
        subprocess.run(command, cwd=ROOT, env=environment(), check=True)
        python = folder / "bin" / "python"
    seen = at_work(python)
    beside = {name: seen[name] for name in ("torch", "transformers")}
    return row("python", full, beside, today(), **tests(python, QUICK))


def on_torch(release: str, minor: str, transformers: str | None) -> list[Row]:
    """The row of one release of torch, whose CPU half runs the tests in an environment of its own."""
    python = pythons.interpreters().get(minor)
    if python is None or python == Path(sys.executable):
        raise SystemExit(f"--on: expected another Python than this one, of {', '.join(pythons.MINORS)}, got {minor}")
    folder = WORK / f"torch-{release}-py{minor}"
    inside = folder / "bin" / "python"
    if not (folder / ".installed").is_file():
        WORK.mkdir(exist_ok=True)
        subprocess.run([str(python), "-m", "venv", "--clear", str(folder)], check=True)
        bare_torch.install(inside, release)
        constraints = folder / "constraints.txt"
        constraints.write_text(bare_torch.unpinned((ROOT / "constraints.txt").read_text()))
        command = ["make", "venv", f"VENV={folder}", f"CONSTRAINTS={constraints}", f"TORCH=torch=={release}"]
        # No pip.conf, as a cap there may refuse the torch that is installed.
        setting = {"MEMOIR_FAST_CUDA": "0", "PIP_CONFIG_FILE": os.devnull}
        subprocess.run(command, cwd=ROOT, env={**environment(), **setting}, check=True)
    over = []
    if transformers:
        over = [WORK / f"transformers-{transformers}-py{minor}-torch-{release}"]
        overlay(inside, over[0], "transformers", transformers)
    seen = at_work(inside, *over)
    found, _, build = seen["torch"].partition("+")
    if found != release or transformers not in (None, seen["transformers"]):
        raise SystemExit(f"expected torch {release} and transformers {transformers or 'of any release'}, got {seen}")
    print(f"== torch {release}, {seen}", flush=True)
    beside = {"build": f"{build or 'of the CPU'} without CUDA's libraries", "transformers": seen["transformers"]}
    return [row("torch", release, {**beside, "Python": seen["python"]}, today(), **tests(inside, WITH_TORCH, *over))]


def chosen(parts: list[str], quick: bool, cuda_torch: bool) -> list[Row]:
    """Runs parts of the matrix, and returns their rows."""
    rows = []
    if "transformers" in parts:
        releases = list(dict.fromkeys([OLDEST, BETWEEN, newest(sys.executable, "transformers")]))
        if quick:  # the suite itself runs on this environment's release
            releases = [one for one in releases if one not in (BETWEEN, importlib.metadata.version("transformers"))]
        rows += on_transformers(releases, QUICK if quick else TESTS)
    if "torch headers" in parts:
        rows += with_headers(list(dict.fromkeys([*OLD_TORCHES, newest(sys.executable, "torch")])))
    if "python" in parts:
        rows += on_pythons(cuda_torch)
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, help="these parts; the rows of others stay")
    quick = "transformers, oldest and newest, but for the one installed; writes nothing"
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--cuda-torch", action="store_true", help="install CUDA builds of torch, 3 GB for each Python")
    parser.add_argument("--torch", metavar="RELEASE", help="instead, the tests on this torch from the registry")
    parser.add_argument("--on", metavar="MINOR", help="with --torch: the Python, such as 3.13; not this one's own")
    parser.add_argument("--transformers", metavar="RELEASE", help="with --torch: this release of transformers")
    parser.add_argument("--check", action="store_true", help="only compare docs/versions.md with matrix.json")
    asked = parser.parse_args(arguments)
    if asked.check:
        if versions.differs():
            print("docs/versions.md is not what docs/results/matrix.json says: make matrix")
        return int(versions.differs())
    if bool(asked.torch) != bool(asked.on) or (asked.transformers and not asked.torch):
        parser.error("--torch, --on and --transformers belong together; --transformers may be left out")
    parts = asked.only or (["transformers"] if asked.quick else list(PARTS))
    try:
        if asked.torch:
            rows = on_torch(asked.torch, asked.on, asked.transformers)
        else:
            rows = chosen(parts, asked.quick, asked.cuda_torch)
    except RegistryError as error:
        print(error, file=sys.stderr)
        return 2
    if not asked.quick:
        versions.write(versions.merged(versions.read(), rows))
    print(versions.section(rows))
    return int(not all(map(versions.good, rows)))


if __name__ == "__main__":
    raise SystemExit(main())
