"""The kernels compile without a GPU for every target and known model, and their machine code is what it should be."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="the kernels are Triton's; it has no wheel for this platform")

from memoir_fast.kernels.tophash import tophash  # noqa: E402  (needs triton)

BENCH = Path(__file__).parents[2] / "bench"
TENSOR_CORE = {"rows", "prefill", "multiply", "grad_x", "grad_memory", "memory_update"}
NO_WIDE_STREAM = {
    "mask_columns",
    "route_rows",
    "code_route",
    "combine",
    "choose",
    "gather",
    "pack",
}  # a few KB of partial results; inputs scattered over a row
CAPABILITIES = (80, 90, 100)


@pytest.fixture(scope="module")
def bench():
    """The modules bench/machine_code.py, bench/benchmarks.py and bench/shapes.py."""
    sys.path.insert(0, str(BENCH))
    try:
        yield tuple(importlib.import_module(name) for name in ("machine_code", "benchmarks", "shapes"))
    finally:
        sys.path.remove(str(BENCH))


def _specializations(bench, capability: int, layers, dtype: torch.dtype) -> dict:
    """Every distinct kernel that the calls at these layers' sizes launch, with the first call that does."""
    machine_code, benchmarks, _ = bench
    found = {}
    for layer in layers:
        for call in benchmarks.calls(layer, dtype):
            for launch in machine_code.launches(call.run, capability):
                found.setdefault(launch.kernel, f"{call.name}, {layer.model}, {dtype}")
    return found


def _check(bench, capability: int, found: dict, dtype: torch.dtype) -> None:
    machine_code, *_ = bench
    problems = []
    for kernel, origin in found.items():
        code = machine_code.compile_for(kernel, capability)
        where = f"{kernel.name} for sm_{capability} ({origin})"
        if code.local_accesses or code.stack_bytes:
            problems.append(f"{where}: {code.local_accesses} local loads and stores, {code.stack_bytes} bytes of stack")
        if kernel.name not in NO_WIDE_STREAM and not code.wide_loads:
            problems.append(f"{where}: no 16-byte load from global memory among {dict(code.instructions)}")
        if dtype != torch.float32 and kernel.name in TENSOR_CORE and not code.tensor_core:
            problems.append(f"{where}: no tensor-core instruction")
    assert not problems, "\n".join(problems)


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_machine_code_at_the_sizes_of_known_models(bench, capability):
    layers = bench[2].LAYERS if capability == 90 else (bench[2].LLAMA, bench[2].SMOLLM)  # the largest, the smallest
    found = _specializations(bench, capability, layers, torch.bfloat16)
    names = {kernel.name for kernel in found}
    assert names >= TENSOR_CORE | {"prompt_feature", "tophash", "one", "gather", "scan", "choose", "mask_overlap"}
    _check(bench, capability, found, torch.bfloat16)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_tophash_of_few_rows_admits_its_successor_where_the_gpu_can(bench, capability):
    machine_code, *_ = bench
    counts = {}
    for rows in (1, 4096):
        feature = torch.empty((rows, 14336), device="meta")
        order = torch.empty(14336, dtype=torch.int32, device="meta")
        *_, launch = machine_code.launches(
            lambda feature=feature, order=order: tophash(feature, 4096, order), capability
        )
        counts[rows] = machine_code.compile_for(launch.kernel, capability).count(r"PREEXIT")
    assert counts == {1: int(capability >= 90), 4096: 0}


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_machine_code_of_float32(bench, capability):
    large = bench[2].LAYERS[0]
    found = _specializations(bench, capability, [large], torch.float32)
    known = _specializations(bench, capability, [large], torch.bfloat16)
    _check(bench, capability, {kernel: found[kernel] for kernel in found if kernel not in known}, torch.float32)


def test_float16_takes_the_tensor_cores_too(bench):
    found = _specializations(bench, 90, bench[2].LAYERS[:1], torch.float16)
    names = {"one", "rows", "prefill", "multiply"}
    wanted = {kernel: origin for kernel, origin in found.items() if kernel.name in names}
    _check(bench, 90, wanted, torch.float16)


def test_memory_streams_of_one_token_are_read_in_16_bytes(bench):
    """The rows of memory are the stream; beside it only columns, inputs, the base and the route are read."""
    machine_code, benchmarks, shapes = bench
    call = next(call for call in benchmarks.calls(shapes.LLAMA) if call.name == "masked_linear, 1 token")
    (launch,) = machine_code.launches(call.run, 90)
    code = machine_code.compile_for(launch.kernel, 90)
    constants = dict(launch.kernel.constants)
    threads = 32 * dict(launch.kernel.options)["num_warps"]
    loads_of_one_step = constants["BLOCK_K"] * constants["BLOCK_O"] * 2 // (16 * threads)
    assert code.wide_loads >= 2 * loads_of_one_step  # before the loop, and in it
    assert launch.grid[0] * constants["BLOCK_O"] == 4096


@pytest.mark.parametrize("sequences", [70_000, 3])
def test_no_grid_is_larger_than_a_device_takes(bench, sequences):
    """A packed row is a batch of as many sequences as it has tokens; 65,535 is the most but in the first dimension."""
    from memoir_fast.kernels import masked_linear

    machine_code, *_ = bench
    x = torch.empty(sequences, 1, 64, device="meta", dtype=torch.bfloat16)
    memory, columns = x.new_empty(64, 32), torch.empty(5, 24, device="meta", dtype=torch.int32)
    route = columns.new_empty(sequences)
    grad = x.new_empty(sequences, 1, 32)

    def serve():
        masked_linear.masked_linear(x, memory, columns, route)
        masked_linear.masked_linear_backward(grad, x, memory, columns, route, True, False)

    launches = machine_code.launches(serve, 90)
    assert {"rows", "grad_x"} <= {one.kernel.name for one in launches}
    assert all(one.grid[0] < 2**31 and max(one.grid[1:], default=1) <= 65_535 for one in launches), launches
