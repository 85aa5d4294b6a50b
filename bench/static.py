"""`python bench/static.py`: what the GPU kernels are on paper, without a GPU. Prints the tables, writes them to a file.

Every Triton kernel is compiled for sm_80, sm_90 and sm_100 as a call would launch it, disassembled and counted; every
call's time on an H200 is predicted, to be held against the first real run. Nothing here is measured on a GPU; the
host's cost of one call is, on the machine that runs this.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import calls
import machine_code
import static_match
import static_time
import torch
import triton
from memoir_fast.kernels.tophash import tophash

from memoir_fast import backends, ops

RESULTS = Path(__file__).parent / "results" / "static.md"
BANDWIDTH, TENSOR_FLOPS, CLOCK, SMS = 4.3e12, 790e12, 1.83e9, 132  # H200: copy bandwidth and dense bf16 as planned with
LAUNCH = 1.3e-6  # seconds between two kernels of a CUDA graph
ROUNDS = 7  # of the search in `tophash`: means of 5.3 to 7.5 over six kinds of rows at k / D = 0.286
TARGETS = {
    "tophash, 1 rows": "4.5 us",
    "tophash, 8192 rows": "65 % of copy bandwidth",
    "mask_match, 7,000 edits": "3 us after tophash",
    "masked_linear, 1 token": "9.2 us",
    "masked_linear, 2048 tokens": "0.40 of the dense layer, 122 us",
}


def kernel_rows(layers: tuple[calls.Layer, ...], capabilities: tuple[int, ...]) -> list[str]:
    """The table of compiled kernels, one row per distinct kernel and target."""
    rows = [
        "| kernel | first needed by | sm | registers | shared B | instructions | tensor core | 16-byte loads "
        "| narrower | local |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for capability in capabilities:
        seen = set()
        for layer in layers:
            for call in calls.calls(layer):
                for launch in machine_code.launches(call.run, capability):
                    if launch.kernel not in seen:
                        seen.add(launch.kernel)
                        code = machine_code.compile_for(launch.kernel, capability)
                        rows.append(
                            f"| {launch.kernel.name} | {call.name}, {layer.model} | {capability} | {code.registers} "
                            f"| {code.shared_bytes} | {sum(code.instructions.values())} | {code.tensor_core} "
                            f"| {code.wide_loads} | {code.narrow_loads} | {code.local_accesses} |"
                        )
    return rows


def _search_seconds(launch: machine_code.Launch) -> float:
    """Issue time of `tophash` on the busiest SM: 4 a clock; every instruction once, the search loop once per round."""
    code = machine_code.compile_for(launch.kernel, 90)
    warps = dict(launch.kernel.options)["num_warps"]
    instructions = sum(code.instructions.values()) + (ROUNDS - 1) * code.loop("BAR")
    rows_of_one_sm = -(-launch.grid[0] // SMS)
    return rows_of_one_sm * instructions * warps / 4 / CLOCK


def call_rows(layer: calls.Layer) -> list[str]:
    """The table of calls: bytes and operations, the time that they bound, the prediction, the target."""
    rows = [
        "| call | launches | MB | GFLOP | floor us | bound by | predicted us | target |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for call in calls.calls(layer):
        recorded = machine_code.launches(call.run, 90)
        bounds = {"bytes": call.floor_bytes / BANDWIDTH, "tensor cores": call.operations / TENSOR_FLOPS}
        floor = max(bounds.values())
        if recorded[-1].kernel.name == "tophash":
            bounds["instructions"] = _search_seconds(recorded[-1])
        predicted = max(bounds.values()) + len(recorded) * LAUNCH
        rows.append(
            f"| {call.name} | {len(recorded)} | {call.floor_bytes / 1e6:.2f} | {call.operations / 1e9:.2f} "
            f"| {floor * 1e6:.1f} | {max(bounds, key=bounds.__getitem__)} | {predicted * 1e6:.1f} "
            f"| {TARGETS.get(call.name, '')} |"
        )
    return rows


def _microseconds(*functions: Callable[[], object], calls_each: int = 300, rounds: int = 9) -> list[float]:
    """Shortest mean time of one call of each function, measured in turns: other load only ever adds."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds):
        for function, collected in zip(functions, times, strict=True):
            start = time.perf_counter()
            for _ in range(calls_each):
                function()
            collected.append((time.perf_counter() - start) / calls_each * 1e6)
    return [min(collected) for collected in times]


def host_rows() -> list[str]:
    """What the op's face adds to a launcher on the host, and what the launcher itself does before Triton's launch.

    On CPU tensors: the launcher with Triton's launch left out; the op's face with a stand-in for the launcher that
    returns at once.
    """
    width, k = 14336, 4096
    feature, permutation = torch.randn(1, width), torch.randperm(width).int()
    outputs = torch.empty((1, 448), dtype=torch.int32), torch.empty((1, k), dtype=torch.int32)
    stand_in = backends.Implementation(lambda *_: outputs, lambda *_: None)
    registered = torch.ops.memoir_fast.tophash.default
    with (
        machine_code.mock.patch.object(backends, "load", lambda *_: stand_in),
        machine_code.mock.patch.object(ops._checks, "index_range", lambda *_: None),  # reads values on the CPU only
        machine_code.mock.patch.object(machine_code.JITFunction, "run", lambda *_, **__: None),
    ):
        direct, dispatched, public, launcher = _microseconds(
            lambda: stand_in.run(feature, k, permutation),
            lambda: registered(feature, k, permutation),
            lambda: ops.tophash(feature, k, permutation, check=False),
            lambda: tophash(feature, k, permutation),
        )
    return [
        "| host cost of one `tophash` call | us |",
        "| --- | --- |",
        f"| registered op over a direct call: dispatch, checks, choice of backend | {dispatched - direct:.1f} |",
        f"| public function over a direct call | {public - direct:.1f} |",
        f"| launcher, outputs allocated, Triton's own launch left out | {launcher:.1f} |",
    ]


def report(quick: bool) -> str:
    """The whole page in Markdown."""
    layers = calls.LAYERS[:1] if quick else calls.LAYERS
    parts = [
        "# The GPU kernels on paper",
        "Written by `python bench/static.py`; no GPU was used but for the figures that are called measured.",
        f"Triton {triton.__version__}, torch {torch.__version__.split('+')[0]}, bfloat16 unless an op says otherwise.",
        *static_time.section(),
        "## Triton: calls at Llama-3-8B's layer, predicted for an H200",
        f"Predicted: the largest of bytes at {BANDWIDTH / 1e12} TB/s, operations at {TENSOR_FLOPS / 1e12:.0f} TFLOP/s "
        f"and, for `tophash`, instructions issued at 4 per clock and SM ({ROUNDS} search rounds, "
        f"everything else once, though ties and rows that are not finite are rare), plus "
        f"{LAUNCH * 1e6} us per launch. Memory latency and imperfect overlap are not in it. Launches exclude memsets.",
        *("\n".join(table) for table in (call_rows(layers[0]), host_rows())),
        *static_match.section(),
        "## Triton: kernels",
        "\n".join(kernel_rows(layers, (90,) if quick else tuple(machine_code.DEVICES))),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Prints the page; without --quick, writes it too."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one layer, one target; write nothing")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    page = report(quick)
    print(page, end="")
    if not quick:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(page)


if __name__ == "__main__":
    main()
