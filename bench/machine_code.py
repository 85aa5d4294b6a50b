"""Machine code of the kernels, without a GPU: Triton's compiled exactly as a call would launch them, CUDA's as built.

Triton's launchers run on meta tensors, which have shapes and strides but no memory; what they would launch is recorded,
compiled for a target, and disassembled with the tools in Triton's own wheel.
"""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
import triton.backends.nvidia
from memoir_fast.kernels import _launch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from memoir_fast import native

DEVICES = {80: "NVIDIA A100-SXM4-80GB", 90: "NVIDIA H200", 100: "NVIDIA B200"}  # compute capability -> a GPU's name
_TOOLS = Path(triton.backends.nvidia.__file__).parent / "bin"
_TYPES = {
    torch.bool: "*i1",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
}
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)([^;]*)", re.MULTILINE)


@dataclass(frozen=True)
class Specialization:
    """What Triton compiles a kernel for: types, constants, which arguments are multiples of 16, options."""

    function: JITFunction
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    aligned: tuple[str, ...]
    options: tuple[tuple[str, Any], ...]

    @property
    def name(self) -> str:
        return self.function.__name__.lstrip("_")


@dataclass(frozen=True)
class Launch:
    """One recorded launch."""

    kernel: Specialization
    grid: tuple[int, ...]


@dataclass(frozen=True)
class MachineCode:
    """A compiled kernel: what ptxas used, and its instructions."""

    registers: int
    stack_bytes: int
    shared_bytes: int
    text: str

    @cached_property
    def instructions(self) -> Counter[str]:
        return Counter(match[1] for match in _INSTRUCTION.finditer(self.text))

    def count(self, pattern: str) -> int:
        """Instructions whose name matches the regular expression in full."""
        return sum(times for name, times in self.instructions.items() if re.fullmatch(pattern, name))

    @property
    def local_accesses(self) -> int:
        return self.count(r"(LDL|STL)(\..*)?")

    @property
    def wide_loads(self) -> int:
        """16-byte loads from global memory, asynchronous copies to shared memory included."""
        return self.count(r"LDG\..*128(\..*)?|LDGSTS\..*128(\..*)?|UBLKCP.*|UTMALDG.*")

    @property
    def narrow_loads(self) -> int:
        return self.count(r"(LDG|LDGSTS)(\..*)?") - self.wide_loads

    @property
    def tensor_core(self) -> int:
        return self.count(r"(HMMA|HGMMA|UTCHMMA|UTCQMMA)(\..*)?")

    def loop(self, containing: str) -> int:
        """Instructions of the first loop with such an instruction."""
        return len(self.loops(containing)[0])

    def loops(self, containing: str) -> list[list[str]]:
        """Instructions from a backward branch's target to the branch, for every loop with such an instruction."""
        labels: dict[str, int] = {}
        listing: list[str] = []
        found_loops: list[list[str]] = []
        for line in self.text.splitlines():
            if label := re.match(r"^(\.L_x_\d+):", line):
                labels[label[1]] = len(listing)
            elif found := _INSTRUCTION.match(line):
                listing.append(found[1])
                target = re.search(r"\(?(\.L_x_\d+)\)?", found[2])
                start = labels.get(target[1], -1) if target and found[1].startswith("BRA") else -1
                if 0 <= start < len(listing) - 1 and any(re.match(containing, name) for name in listing[start:]):
                    found_loops.append(listing[start:])
        if not found_loops:
            raise LookupError(f"no loop contains {containing}")
        return found_loops


def _specialize(function: JITFunction, values: dict[str, Any]) -> Specialization:
    """Follows Triton's launcher: 1 becomes a constant, multiples of 16 and addresses are marked as such."""
    signature, constants, aligned = [], [], []
    for parameter in function.params:
        value = values.pop(parameter.name)
        if parameter.is_constexpr or (value is None):
            constants.append((parameter.name, value))
        elif isinstance(value, torch.Tensor):
            signature.append((parameter.name, _TYPES[value.dtype]))
            aligned.append(parameter.name)
        elif value == 1 and not parameter.do_not_specialize:
            constants.append((parameter.name, 1))
        else:
            signature.append((parameter.name, "i32" if -(2**31) <= value < 2**31 else "i64"))
            if value % 16 == 0 and not parameter.do_not_specialize:
                aligned.append(parameter.name)
    return Specialization(function, tuple(signature), tuple(constants), tuple(aligned), tuple(sorted(values.items())))


@contextmanager
def _recording(capability: int) -> Iterator[list[Launch]]:
    launches: list[Launch] = []

    def record(self: JITFunction, *args: Any, grid: tuple[int, ...], warmup: bool, **kwargs: Any) -> None:
        values = dict(zip(self.arg_names, args, strict=False)) | kwargs
        launches.append(Launch(_specialize(self, values), grid))

    with (
        mock.patch.object(JITFunction, "run", record),
        mock.patch.object(_launch, "_device_name", lambda _: DEVICES[capability]),
        mock.patch.object(_launch, "_capability", lambda _: capability // 10),
    ):
        yield launches


def launches(call: Callable[[], object], capability: int) -> list[Launch]:
    """What `call`, given meta tensors, would launch on a GPU of this compute capability."""
    with _recording(capability) as recorded:
        call()
    return recorded


def compile_for(kernel: Specialization, capability: int) -> MachineCode:
    """Compiles a kernel for a compute capability (80, 90, 100) and disassembles it. Needs no GPU."""
    names = kernel.function.arg_names
    constants = dict(kernel.constants)
    source = ASTSource(
        kernel.function,
        {name: dict(kernel.signature).get(name, "constexpr") for name in names},
        constexprs=constants,
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in kernel.aligned},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=dict(kernel.options))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        text = _tool("nvdisasm", "-c", cubin.name)
        usage = _tool("cuobjdump", "-res-usage", cubin.name)
    used = {name: int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK")}  # type: ignore[index]
    return MachineCode(used["REG"], used["STACK"], compiled.metadata.shared, text)


def built_kernels(capability: int) -> dict[str, MachineCode]:
    """The kernels of the built CUDA extension for a compute capability, by mangled name.

    Raises LookupError where the extension is missing or has no code for it.
    """
    try:
        path = Path(native.extension().__file__)
    except ImportError as error:
        raise LookupError(str(error)) from None
    kernels = {}
    with tempfile.TemporaryDirectory() as folder:
        _tool("cuobjdump", "-xelf", f"sm_{capability}", str(path), folder=folder)
        for cubin in sorted(Path(folder).glob("*.cubin")):
            parts = re.split(r"^\.text\.(\w+):$", _tool("nvdisasm", "-c", str(cubin)), flags=re.MULTILINE)
            used = _tool("cuobjdump", "-res-usage", str(cubin))
            for name, text in zip(parts[1::2], parts[2::2], strict=True):
                of_kernel = used[used.index(f"Function {name}:") :]
                registers, stack, shared = (
                    int(re.findall(rf"{kind}:(\d+)", of_kernel)[0]) for kind in ("REG", "STACK", "SHARED")
                )
                kernels[name] = MachineCode(registers, stack, shared, text)
    if not kernels:
        raise LookupError(f"the extension has no code for sm_{capability}")
    return kernels


def _tool(name: str, *arguments: str, folder: str | None = None) -> str:
    run = subprocess.run([str(_TOOLS / name), *arguments], capture_output=True, text=True, check=True, cwd=folder)
    return run.stdout + run.stderr
