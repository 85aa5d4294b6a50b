"""What the compiler made of the CUDA kernels, read from the built file with the disassembler of Triton's wheel."""

import functools
import importlib.util
import re
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import pytest

from memoir_fast import native

BIT_MMA = ("8.0", "9.0")
# An instruction as cuobjdump prints it: address, text, and the second half of its encoding on a line of its own.
ENCODED = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.+?)\s*;.*\n\s+/\* 0x([0-9a-f]{16}) \*/$", re.MULTILINE)


def architectures() -> list[str]:
    try:
        listed = native.extension().build_info()["cuda_architectures"]
    except ImportError:
        return []
    return re.findall(r"\d+\.\d+[af]?", listed)


@pytest.fixture(scope="module")
def sass(extension):
    """architecture -> what cuobjdump says."""
    if not extension.build_info()["cuda"]:
        pytest.skip("the extension was built without nvcc")
    triton = importlib.util.find_spec("triton")
    tools = Path(triton.submodule_search_locations[0], "backends", "nvidia", "bin") if triton else Path()
    if not (tools / "cuobjdump").is_file():
        pytest.skip("needs cuobjdump from Triton's wheel, which is not installed")

    @functools.cache
    def run(architecture: str) -> str:
        name = f"sm_{architecture.replace('.', '')}"
        command = [tools / "cuobjdump", "-sass", "-arch", name, extension.__file__]
        return subprocess.run(command, capture_output=True, text=True, check=True, env={"PATH": str(tools)}).stdout

    return run


@pytest.fixture(scope="module")
def disassemble(sass):
    """architecture -> kernel's mangled name -> its instructions."""

    def run(architecture: str) -> dict[str, list[str]]:
        kernels = defaultdict(list)
        for line in sass(architecture).splitlines():
            if function := re.search(r"Function : (\S+)", line):
                kernel = function[1]
            elif instruction := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d\s+)?([A-Z][\w.]*)", line):
                kernels[kernel].append(instruction[1])
        return dict(kernels)

    return run


@pytest.mark.parametrize("architecture", architectures() or ["none"])
def test_instructions(disassemble, architecture):
    kernels = {name: found for name, found in disassemble(architecture).items() if re.search("scan|scratch", name)}
    assert len(kernels) == 13  # six kernels, for mask_overlap and for mask_match, and what clears their scratch memory
    for name, instructions in kernels.items():
        assert "EXIT" in instructions
        assert not [i for i in instructions if i.split(".")[0] in ("LDL", "STL")], f"{name} spills"
        if "clear_scratch" in name:
            assert [i for i in instructions if i.startswith("STG")]
        elif "popc_scan" in name:
            loads = [i for i in instructions if i.startswith("LDG") and ".128" in i]
            streaming = [i for i in loads if ".NA" in i]
            assert "POPC" in instructions or "UPOPC" in instructions
            assert streaming, f"{name} does not read the store 16 bytes at a time"
            assert len(loads) >= instructions.count("POPC") / 8
        elif architecture in BIT_MMA:
            products = [i for i in instructions if i.startswith("BMMA.168256.AND.POPC")]
            copies = [i for i in instructions if i.startswith("LDGSTS") and ".128" in i]
            fragments = [i for i in instructions if i.startswith("LDSM") and i.endswith(".4")]
            assert len(products) in (16, 64) and copies and len(fragments) == (16 if len(products) == 64 else 8)
            assert "POPC" not in instructions
        else:
            assert len(instructions) < 40, f"{name} holds a matrix product that this architecture only emulates"


@pytest.mark.parametrize("architecture", architectures() or ["none"])
def test_dependent_launch(disassemble, architecture):
    """From sm_90 on, kernels of POPC wait for those before them (ACQBULK), and only prefetch until then."""
    wait, prefetch, admit = "ACQBULK", "CCTL.E.PF2", "PREEXIT"
    memory = ("LD", "ST", "ATOM", "RED")
    for name, instructions in disassemble(architecture).items():
        if not re.search("scan|scratch", name):
            continue
        found = {wait, prefetch, admit} & set(instructions)
        if "mma_scan" in name or architecture.startswith("8."):
            assert not found, f"{name} holds {found}"
            continue
        assert found == {wait, prefetch if "popc_scan" in name else admit}, name
        before = instructions[: instructions.index(wait)]
        touched = [i for i in before if i.startswith(memory) and not i.startswith("LDC")]
        assert not touched, f"{name} touches memory before it waits: {touched}"
        if "popc_scan" in name:
            assert prefetch in before


def of_masked_linear(kernels: dict[str, list[str]]) -> dict[str, list[str]]:
    return {name: found for name, found in kernels.items() if re.search("stream_rows|multiply_tiles|pack_inputs", name)}


@pytest.mark.parametrize("architecture", architectures() or ["none"])
def test_masked_linear(disassemble, architecture):
    """The memory streams in pieces of 16 bytes, two-byte types meet it on the tensor cores, and nothing spills."""
    kernels = of_masked_linear(disassemble(architecture))
    assert len(kernels) == 17  # 4 + 3 + 3 that stream, 3 + 3 that multiply tiles, and what packs their inputs
    for name, instructions in kernels.items():
        assert not [i for i in instructions if i.split(".")[0] in ("LDL", "STL")], f"{name} spills"
        if architecture.startswith("8."):
            assert len(instructions) < 40, f"{name} needs clusters, which this architecture lacks"
            continue
        loads = [i for i in instructions if i.startswith("LDG.") and ".128" in i]
        copies = [i for i in instructions if i.startswith("LDGSTS") and ".128" in i]
        products = [i for i in instructions if i.startswith("HMMA.16816.F32")]
        if "stream_rows" in name:
            assert len([i for i in loads if ".NA" in i]) >= 8, f"{name} does not read four rows ahead"
            assert not copies and not products
        elif "multiply_tiles" in name:
            tiles = int(re.search(r"Li(\d+)E", name)[1]) // 16  # of 16 rows; a step is two products deep
            assert len(products) == 2 * tiles * (256 // 8) // 8
            assert len(copies) >= 4 + 1
            transposed = [i for i in instructions if i.startswith("LDSM") and ".MT88" in i]
            assert len(transposed) == len(products) // (2 * min(tiles, 2))
        else:
            assert [i for i in instructions if i.startswith("STG") and ".128" in i]


@pytest.mark.parametrize("architecture", architectures() or ["none"])
def test_masked_linear_waits(disassemble, architecture):
    """What streams and what packs touch no memory before the wait; tiles may, since the packing has waited."""
    for name, instructions in of_masked_linear(disassemble(architecture)).items():
        if architecture.startswith("8."):
            continue
        before = instructions[: instructions.index("ACQBULK")]
        touched = [i for i in before if i.startswith(("LDG", "STG", "ATOM", "RED"))]
        assert "PREEXIT" in instructions and bool(touched) == ("multiply_tiles" in name), name
        if "pack_inputs" in name:
            assert instructions.index("ACQBULK") < instructions.index("PREEXIT")


def of_hashing(kernels: dict[str, list[str]]) -> dict[str, list[str]]:
    return {name: found for name, found in kernels.items() if re.search("hash_row|feature_columns|list_columns", name)}


@pytest.mark.parametrize("architecture", architectures() or ["none"])
def test_hashing(disassemble, architecture):
    """Nothing spills, rows come in pieces of 16 bytes, and from sm_90 on no memory is touched before the wait."""
    kernels = of_hashing(disassemble(architecture))
    assert len(kernels) == 14  # four that hash rows, nine of features (three dtypes and widths), one that lists columns
    for name, instructions in kernels.items():
        assert not [i for i in instructions if i.split(".")[0] in ("LDL", "STL")], f"{name} spills"
        loads = [i for i in instructions if i.startswith("LDG.") and ".128" in i]
        if "hash_row" in name:
            assert len(loads) >= 4 and [i for i in instructions if i.startswith("REDUX")], name
            assert [i for i in instructions if i.startswith("ATOMS.OR")], name
        elif "feature_columns" in name:
            assert len(loads) >= 8, f"{name} has fewer than eight loads in flight"
        if architecture.startswith("8."):
            assert not {"ACQBULK", "PREEXIT"} & set(instructions)
            continue
        before = instructions[: instructions.index("ACQBULK")]
        touched = [i for i in before if i.startswith(("LDG", "STG", "ATOM", "RED"))]
        assert not touched and "PREEXIT" in instructions, f"{name} touches memory before it waits: {touched}"


class Step(NamedTuple):
    """An instruction, with what its encoding says of the six counters by which loads are waited for."""

    address: int
    name: str
    counter: int  # of this load, until its value is there; 7: none
    waits: int  # a bit for each counter that must be zero first
    target: int | None  # of a branch
    always: bool  # not predicated


@pytest.fixture(scope="module")
def steps(sass):
    """architecture, kernels' names as a regular expression -> mangled name -> steps."""

    def step(found: re.Match[str]) -> Step:
        control = int(found[3], 16) >> 41
        predicated = re.match(r"@!?U?P\w+ ", found[2])
        text = found[2][predicated.end() if predicated else 0 :]
        target = re.match(r"BRA.* 0x([0-9a-f]+)$", text)
        always = not predicated and not re.match(r"BRA\S* !?U?P", text)
        address = int(target[1], 16) if target else None
        return Step(int(found[1], 16), text.split()[0], control >> 5 & 7, control >> 11 & 63, address, always)

    def run(architecture: str, kernels: str) -> dict[str, list[Step]]:
        parts = re.split(r"Function : (\S+)", sass(architecture))
        named = zip(parts[1::2], parts[2::2], strict=True)
        return {name: [*map(step, ENCODED.finditer(text))] for name, text in named if re.search(kernels, name)}

    return run


def in_flight(listing: list[Step], kind: str) -> list[list[str]]:
    """At each wait for a load of a kind, those on their way. Where ways join, those of the way that has more."""
    joining: dict[int, dict[int, list[str]]] = {}
    under_way: dict[int, list[str]] | None = {}
    seen = []

    def loads(counters: dict[int, list[str]] | None) -> list[str]:
        return [] if counters is None else sum(counters.values(), [])

    for one in listing:
        if one.address in joining and (under_way is None or len(loads(joining[one.address])) > len(loads(under_way))):
            under_way = joining[one.address]
        if under_way is None:
            continue
        waited = [counter for counter in under_way if one.waits >> counter & 1]
        if waited:
            seen.append(loads(under_way))
            under_way = {counter: names for counter, names in under_way.items() if counter not in waited}
        if re.match(rf"LDG\..*{kind}", one.name) and one.counter != 7:
            under_way = under_way | {one.counter: [*under_way.get(one.counter, []), one.name]}
        forward = one.target is not None and one.target > one.address
        if forward and len(loads(under_way)) >= len(loads(joining.get(one.target))):
            joining[one.target] = under_way
        if one.always and (one.target is not None or one.name == "EXIT"):
            under_way = None
    return seen


def most(listing: list[Step], kind: str) -> int:
    """The most loads of a kind on their way at once."""
    return max(map(len, in_flight(listing, kind)), default=0)


@pytest.mark.parametrize("architecture", architectures() or ["none"])
def test_loads_are_asked_for_together(steps, architecture):
    """None waits for another that it does not depend on: a round trip to memory each takes longer than the kernel."""
    with_clusters = r"pack_inputs|stream_rows|multiply_tiles"
    wanted = (
        r"(hash_row|feature_columns|popc_scan(?=.*Lb1E)" + ("" if architecture[0] == "8" else f"|{with_clusters}") + ")"
    )
    kernels = steps(architecture, wanted)
    assert len(kernels) == 4 + 9 + 4 + (0 if architecture[0] == "8" else 17)
    for kernel, listing in kernels.items():
        found = re.search(wanted, kernel)
        sizes = [int(size) for size in re.findall(r"Li(\d+)E", kernel)]
        columns = [*map(len, in_flight(listing, "STRONG"))]
        if found[1] == "hash_row":  # the feature, and the permutation
            assert [*map(len, in_flight(listing, "128"))].count(sizes[1]) >= 2, kernel
        elif found[1] == "pack_inputs":  # a thread's 8 columns and the page, then its 8 inputs
            assert (max(columns), most(listing, "U16")) == (9, 8), kernel
        elif found[1] == "multiply_tiles":  # a thread's 4 rows and the page
            assert max(columns) == 5, kernel
        elif (
            found[1] == "stream_rows"
        ):  # the route, then 2 columns and the page; 2 inputs a token and 4 pieces, but one
            assert columns[:2] == [1, 3] and most(listing, "") >= 2 * sizes[0] + 4 - 1, kernel
        elif found[1] == "feature_columns":  # marks, and pieces of x
            assert most(listing, "[SU]8") >= 6 and most(listing, "128") == 8, kernel
        else:  # the threshold, beside the row that it is of
            assert any("LDG.E" in names and len(names) > 1 for names in in_flight(listing, "E")), kernel
