"""What the compiler made of the CUDA kernels, read from the built file with the disassembler of Triton's wheel."""

import importlib.util
import re
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from memoir_fast import native

BIT_MMA = ("8.0", "9.0")


def architectures() -> list[str]:
    try:
        listed = native.extension().build_info()["cuda_architectures"]
    except ImportError:
        return []
    return re.findall(r"\d+\.\d+[af]?", listed)


@pytest.fixture(scope="module")
def disassemble(extension):
    """architecture -> kernel's mangled name -> its instructions."""
    if not extension.build_info()["cuda"]:
        pytest.skip("the extension was built without nvcc")
    triton = importlib.util.find_spec("triton")
    tools = Path(triton.submodule_search_locations[0], "backends", "nvidia", "bin") if triton else Path()
    if not (tools / "cuobjdump").is_file():
        pytest.skip("needs cuobjdump from Triton's wheel, which is not installed")

    def run(architecture: str) -> dict[str, list[str]]:
        name = f"sm_{architecture.replace('.', '')}"
        command = [tools / "cuobjdump", "-sass", "-arch", name, extension.__file__]
        text = subprocess.run(command, capture_output=True, text=True, check=True, env={"PATH": str(tools)}).stdout
        kernels = defaultdict(list)
        for line in text.splitlines():
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
