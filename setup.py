"""What pyproject.toml cannot say: where the packages lie, and how csrc/ becomes memoir_fast._C.

The extension is optional. Where it cannot be built the install still succeeds, and the reason is kept in
memoir_fast/_build_failure.txt for `memoir env`. Environment variables:

    MEMOIR_FAST_BUILD     1: a failed build is an error; 0: do not build
    MEMOIR_FAST_CUDA      0: leave the CUDA kernels out
    TORCH_CUDA_ARCH_LIST  architectures, as torch reads it, e.g. "8.0;9.0+PTX"
    CXX, CXXFLAGS, LDFLAGS, CUDA_HOME, MAX_JOBS  as everywhere
"""

import importlib.metadata
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
REASON_FILE = "_build_failure.txt"
OLDEST_TORCH = (2, 10)  # the stable ABI that the extension is written against
DEFAULT_ARCHITECTURES = "8.0+PTX;9.0;10.0;12.0"  # a binary serves the later minor versions of its major too
CXX_FLAGS = "-std=c++17 -O3 -fPIC -fvisibility=hidden -ffp-contract=off -Wall -Wextra"
# GCC 12 sees uninitialised values inside its own AVX-512 header.
CXX_FLAGS += " -Wno-uninitialized -Wno-maybe-uninitialized"
NVCC_FLAGS = "-std=c++17 -O3 -Xcompiler -fPIC,-fvisibility=hidden"


class CannotBuildError(Exception):
    """Why there is no extension, in words for the user."""


def package_folder(name):
    """The folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        hint = "; install it first and pass --no-build-isolation to pip"
        raise CannotBuildError(f"{name} is not in the build environment{hint}")
    return Path(next(iter(spec.submodule_search_locations)))


def torch_version():
    package_folder("torch")
    version = importlib.metadata.version("torch")
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_TORCH:
        raise CannotBuildError(f"torch {version} is older than {'.'.join(map(str, OLDEST_TORCH))}")
    return version


def find_tool(kind, *names):
    for name in names:
        found = name and shutil.which(name)
        if found:
            return found
    raise CannotBuildError(f"no {kind} found (looked for {', '.join(filter(None, names))})")


def find_ninja():
    try:
        return find_tool("ninja", "ninja", str(Path(sys.executable).parent / "ninja"))
    except CannotBuildError:
        return str(package_folder("ninja") / "data" / "bin" / "ninja")


def find_nvcc():
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    return find_tool("nvcc", home and str(Path(home, "bin", "nvcc")), "nvcc", "/usr/local/cuda/bin/nvcc")


def architectures(wanted):
    """Flags for nvcc from a list such as "8.0;9.0a 12.0+PTX"."""
    flags = []
    for name in re.split(r"[;, ]+", wanted.strip(";, ")):
        matched = re.fullmatch(r"(\d+)\.(\d+[af]?)(\+PTX)?", name)
        if not matched:
            raise CannotBuildError(f"TORCH_CUDA_ARCH_LIST: cannot read {name!r}, expected e.g. 8.0;9.0;12.0+PTX")
        number = matched[1] + matched[2]
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if matched[3]:
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


class Plan:
    """One build: the files, the flags, and the ninja file that they become."""

    def __init__(self, output, folder, cuda):
        self.output, self.folder, self.cuda = Path(output).resolve(), Path(folder).resolve(), cuda
        torch = package_folder("torch")
        # pybind11's own before torch's: torch 2.10 and 2.11 ship a copy that refuses TORCH_TARGET_VERSION by #error.
        includes = [package_folder("pybind11") / "include", torch / "include", sysconfig.get_path("include")]
        self.defines = [
            f"-DTORCH_TARGET_VERSION=0x{OLDEST_TORCH[0]:02x}{OLDEST_TORCH[1]:02x}000000000000ULL",
            text_define("MEMOIR_FAST_TORCH", torch_version()),
            text_define("MEMOIR_FAST_TORCH_TARGET", ".".join(map(str, OLDEST_TORCH))),
        ]
        self.cxx = find_tool("C++ compiler", os.environ.get("CXX"), "g++", "c++", "clang++")
        self.libraries = [f"-L{torch / 'lib'}", "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lpthread"]
        self.sources = sorted((ROOT / "csrc").glob("*.cpp"))
        if cuda:
            self.use_cuda(includes)
        else:
            self.sources = [source for source in self.sources if "cuda" not in source.stem]
        self.includes = [f"-isystem {include}" for include in includes]

    def use_cuda(self, includes):
        self.nvcc = find_nvcc()
        wanted = os.environ.get("TORCH_CUDA_ARCH_LIST") or DEFAULT_ARCHITECTURES
        self.gencode = architectures(wanted)
        home = Path(self.nvcc).resolve().parent.parent
        dry = subprocess.run([self.nvcc, "--dryrun", "-x", "cu", "-E", os.devnull], capture_output=True, text=True)
        told = re.search(r"^#\$ _TARGET_DIR_=(.*)$", dry.stderr, re.MULTILINE)
        top = re.search(r"^#\$ TOP=(.*)$", dry.stderr, re.MULTILINE)
        home = Path(top[1].strip()).resolve() if top else home
        target = home / (told[1].strip() if told else "")
        includes.append(target / "include")
        release = subprocess.run([self.nvcc, "--version"], capture_output=True, text=True, check=True).stdout
        version = re.search(r"release ([\d.]+)", release)
        self.defines += [
            text_define("MEMOIR_FAST_CUDA", version[1] if version else "unknown"),
            text_define("MEMOIR_FAST_CUDA_ARCHITECTURES", wanted),
        ]
        self.sources += sorted((ROOT / "csrc").glob("*.cu"))
        folders = [target / "lib", target / "lib64", home / "lib64"]
        self.libraries += [f"-L{path}" for path in folders if path.is_dir()]
        self.libraries += ["-lcudart_static", "-lrt", "-lpthread", "-ldl", "-Wl,--exclude-libs,ALL"]

    def ninja_file(self):
        flags = [CXX_FLAGS, *self.defines, *self.includes, os.environ.get("CXXFLAGS", "")]
        lines = [
            "rule cxx",
            f"  command = {self.cxx} -MMD -MF $out.d {' '.join(flags)} -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule link",
            f"  command = {self.cxx} -shared $in {' '.join(self.libraries)} {os.environ.get('LDFLAGS', '')} -o $out",
        ]
        if self.cuda:
            lines += [
                "rule nvcc",
                f"  command = {self.nvcc} -ccbin {self.cxx} -MD -MF $out.d {NVCC_FLAGS} "
                f"{' '.join(self.gencode)} -c $in -o $out",
                "  depfile = $out.d",
                "  deps = gcc",
            ]
        objects = []
        for source in self.sources:
            objects.append(f"{source.name}.o")
            lines.append(f"build {objects[-1]}: {'nvcc' if source.suffix == '.cu' else 'cxx'} {escaped(source)}")
        lines.append(f"build {self.output.name}: link {' '.join(objects)}")
        return "\n".join(lines) + "\n"

    def run(self):
        """Builds, and moves the result into place in one step: a process that has the old file open keeps it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "build.ninja").write_text(self.ninja_file())
        jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
        ran = subprocess.run(
            [find_ninja(), *jobs], cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        print(ran.stdout, flush=True)
        if ran.returncode:
            raise CannotBuildError(f"the build of csrc/ failed:\n{ran.stdout[-8000:]}")
        self.output.parent.mkdir(parents=True, exist_ok=True)
        beside = self.output.with_suffix(".new")
        shutil.copy(self.folder / self.output.name, beside)
        os.replace(beside, self.output)


def text_define(name, text):
    return shlex.quote(f'-D{name}="{text}"')


def escaped(path):
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def build(output, folder):
    """Builds the extension. Returns why a part of it is missing, or None where all of it was built."""
    if os.environ.get("MEMOIR_FAST_BUILD") == "0":
        raise CannotBuildError("MEMOIR_FAST_BUILD=0 was set when memoir_fast was installed")
    if sys.platform != "linux":
        raise CannotBuildError(f"the extension is built on Linux only, this is {sys.platform}")
    missing = None
    if os.environ.get("MEMOIR_FAST_CUDA") == "0":
        missing = "MEMOIR_FAST_CUDA=0 was set when memoir_fast was installed"
    else:
        try:
            find_nvcc()
        except CannotBuildError as error:
            missing = str(error)
    try:
        Plan(output, folder, cuda=missing is None).run()
    except CannotBuildError as error:
        if missing or os.environ.get("MEMOIR_FAST_BUILD") == "1":
            raise
        Plan(output, folder, cuda=False).run()
        missing = str(error)
    return missing


class BuildNative(build_ext):
    """Builds with ninja, or leaves the reason why not."""

    def run(self):
        extension = self.extensions[0]
        file_name = Path(self.get_ext_filename(extension.name)).name
        in_place = self.inplace or getattr(self, "editable_mode", False)
        package = ROOT / "memoir_fast" if in_place else Path(self.build_lib, "memoir_fast")
        reason_file = package / REASON_FILE
        package.mkdir(parents=True, exist_ok=True)
        try:
            missing = build(package / file_name, self.build_temp)
        except CannotBuildError as error:
            if os.environ.get("MEMOIR_FAST_BUILD") == "1":
                raise SystemExit(f"memoir_fast: {error}") from None
            (package / file_name).unlink(missing_ok=True)
            missing = str(error)
        reason_file.unlink(missing_ok=True)
        if missing:
            print(f"memoir_fast: not built: {missing}", file=sys.stderr)
            reason_file.write_text(missing + "\n")

    def get_outputs(self):
        package = Path(self.build_lib, "memoir_fast")
        return [str(path) for path in (*package.glob("_C.*"), package / REASON_FILE) if path.exists()]

    def get_output_mapping(self):
        return {}


setup(
    packages=[*find_packages(include=["memoir_fast*"]), "memoir_fast.kernels"],
    package_dir={"memoir_fast": "memoir_fast", "memoir_fast.kernels": "kernels"},
    package_data={"memoir_fast": ["py.typed", "data/*"], "memoir_fast.kernels": ["*.json"]},
    ext_modules=[Extension("memoir_fast._C", sources=[])],
    cmdclass={"build_ext": BuildNative},
)
