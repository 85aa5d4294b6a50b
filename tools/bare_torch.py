"""Installs a release of torch without the CUDA libraries that it is linked to. tools/matrix.py uses it.

The registry's torch for Linux needs several GB of NVIDIA's packages before it can be imported, on machines without a
GPU too. Here it gets the smallest of them, CUDA's runtime, which finds no device; each other library is stood in for by
an empty one whose functions all fail. What torch does on the CPU is what the release does.
"""

import os
import re
import subprocess
import sysconfig
import tempfile
from pathlib import Path

from registry import pip

_FAILED = 100  # what a stand-in's functions return: of CUDA's libraries, 0 alone is success
_HEAVY = re.compile(r"Requires-Dist: (nvidia-|cuda-)")
_RUNTIME = re.compile(r"Requires-Dist: (?:(nvidia-cuda-runtime[\w-]*)|(cuda-toolkit)\[[^]]*\])(==[\w.]+)")
_OF_TORCH = re.compile(r"(torch|triton)==|nvidia-|cuda-")
_NEEDED_VERSION = re.compile(r"Version: \d+  File: (\S+)|Name: (\S+)")


def install(python: Path, release: str) -> None:
    """Installs torch into the environment of `python`, such that pip asks for none of NVIDIA's packages later."""
    # No pip.conf: a cap there is on what lies at hand.
    pip(python, "install", "-q", "--no-deps", f"torch=={release}", PIP_CONFIG_FILE=os.devnull)
    asked = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip())
    (metadata,) = site.glob("torch-*.dist-info/METADATA")
    pip(python, "install", "-q", cuda_runtime(metadata.read_text()), PIP_CONFIG_FILE=os.devnull)
    metadata.write_text(without_cuda(metadata.read_text()))
    stand_in(site / "torch" / "lib")


def cuda_runtime(metadata: str) -> str:
    """What to install for the runtime that a torch asks for. ValueError where it asks for none."""
    told = _RUNTIME.search(metadata)
    if not told:
        raise ValueError("expected a torch that requires nvidia-cuda-runtime or cuda-toolkit, found neither")
    package, toolkit, version = told.groups()
    return f"{package}{version}" if package else f"{toolkit}[cudart]{version}"


def without_cuda(metadata: str) -> str:
    """A package's metadata without the requirements that are NVIDIA's."""
    return "".join(line for line in metadata.splitlines(keepends=True) if not _HEAVY.match(line))


def unpinned(constraints: str) -> str:
    """Constraints without the lines on torch and on what a release of it says exactly."""
    return "".join(line for line in constraints.splitlines(keepends=True) if not _OF_TORCH.match(line))


def stand_in(folder: Path) -> list[str]:
    """Puts a stand-in beside the libraries of a folder for each that they need and the system does not find.

    Returns their names. Symbols carry the versions that are asked of them, or the loader would complain.
    """
    libraries = sorted(folder.glob("*.so*"))
    missing = sorted({name for library in libraries for name in not_found(library)} - {"libcuda.so.1"})
    wanted: dict[str, dict[str, set[str]]] = {name: {} for name in missing}
    for library in libraries:
        owner = needed_versions(said("readelf", "-W", "-V", library))
        for line in said("nm", "-D", "--undefined-only", library).splitlines():
            name, _, version = line.split()[-1].partition("@")
            if owner.get(version) in wanted:
                wanted[owner[version]].setdefault(version, set()).add(name)
    for name, versions in wanted.items():
        compile_stand_in(folder / name, versions, set())
    # What has no version: of which library it is, is not written anywhere, so each has it.
    common = {name for library in libraries for name in unresolved(library)}
    for name, versions in wanted.items():
        compile_stand_in(folder / name, versions, common)
    return missing


def compile_stand_in(file: Path, versions: dict[str, set[str]], common: set[str]) -> None:
    """One library: `versions` says which symbols it has by version, `common` those that have none."""
    names = sorted(common.union(*versions.values()))
    nodes = [f"{version} {{ {' '.join(f'{name};' for name in sorted(held))} }};" for version, held in versions.items()]
    with tempfile.TemporaryDirectory() as folder:
        source, script = Path(folder, "stand_in.c"), Path(folder, "versions.map")
        source.write_text("\n".join(f"int {name}(void) {{ return {_FAILED}; }}" for name in names) + "\n")
        script.write_text("\n".join(nodes))
        compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
        flags = ["-w", "-fno-builtin", "-shared", "-fPIC", f"-Wl,-soname,{file.name}"]
        flags += [f"-Wl,--version-script={script}"] if nodes else []
        said(compiler, *flags, "-o", file, source)


def needed_versions(told: str) -> dict[str, str]:
    """By version of symbols, the library that it is asked of; `told` is what readelf -V says."""
    found, file = {}, ""
    for opened, version in _NEEDED_VERSION.findall(told):
        file = opened or file
        if version and file:
            found[version] = file
    return found


def not_found(library: Path) -> list[str]:
    """What a library needs and the loader does not find."""
    return re.findall(r"(\S+) => not found", said("ldd", library))


def unresolved(library: Path) -> list[str]:
    """C functions that neither a library nor anything that it is linked to defines, but for Python's own."""
    ran = subprocess.run(["ldd", "-r", str(library)], capture_output=True, text=True)
    return re.findall(r"undefined symbol: (?!_?Py|_Z)(\w+)", ran.stdout + ran.stderr)


def said(*command: str | Path) -> str:
    """Output of a command. CalledProcessError where it fails."""
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout
