"""`python bench/static.py`: what the GPU kernels are on paper, without a GPU. Prints the tables, writes them to a file.

First every target of a GPU, with what a model calibrated on an H100 says of the kernels of today (planned.py). Then
bounds: every Triton kernel is compiled for sm_80, sm_90 and sm_100 as a call would launch it, disassembled and counted.
Nothing is measured on a GPU here; the host's cost of one call is, on the machine that runs this.
"""

import argparse
from pathlib import Path

import machine_code
import static_time
import torch
import triton
from benchmarks import ON_CPU, calls
from predict import H200
from shapes import LAYERS, Layer

RESULTS = Path(__file__).parent / "results" / "static.md"


def kernel_rows(layers: tuple[Layer, ...], capabilities: tuple[int, ...]) -> list[str]:
    """The table of compiled kernels, one row per distinct kernel and target."""
    rows = [
        "| kernel | first needed by | sm | registers | shared B | instructions | tensor core | 16-byte loads "
        "| narrower | local |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for capability in capabilities:
        seen = set()
        for layer in layers:
            for call in calls(layer):
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


def call_rows(layer: Layer) -> list[str]:
    """The table of calls: bytes and operations, and the time that they take at least."""
    rows = [
        "| call | launches | MB | GFLOP | floor us | bound by | at least us |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for call in calls(layer):
        recorded = machine_code.launches(call.run, 90)
        bounds = {"bytes": call.floor_bytes / H200.bandwidth, "tensor cores": call.operations / H200.tensor_flops}
        floor = max(bounds.values())
        bounds |= call.bounds(recorded)
        least = max(bounds.values()) + len(recorded) * H200.launch
        rows.append(
            f"| {call.name} | {len(recorded)} | {call.floor_bytes / 1e6:.2f} | {call.operations / 1e9:.2f} "
            f"| {floor * 1e6:.1f} | {max(bounds, key=bounds.__getitem__)} | {least * 1e6:.1f} |"
        )
    return rows


def report(quick: bool) -> str:
    """The whole page in Markdown."""
    layers = LAYERS[:1] if quick else LAYERS
    parts = [
        "# The GPU kernels on paper",
        "Written by `python bench/static.py`; no GPU was used but for the figures that are called measured.",
        f"Triton {triton.__version__}, torch {torch.__version__.split('+')[0]}, bfloat16 unless an op says otherwise.",
        *static_time.section(),
        "## Bounds and machine code",
        "What follows are no predictions, but what the kernels cannot fall below on an H200, whose memory is faster, "
        "and what they are compiled to.",
        "## Triton: calls at Llama-3-8B's layer, bounds on an H200",
        f"At least: the largest of bytes at {H200.bandwidth / 1e12} TB/s, operations at "
        f"{H200.tensor_flops / 1e12:.0f} TFLOP/s and, where an op counts them, instructions issued at 4 per clock and "
        f"SM, plus {H200.launch * 1e6} us per launch. Memory latency and imperfect overlap are not in it. Launches "
        "exclude memsets.",
        "\n".join(call_rows(layers[0])),
        *(paragraph for benchmark in ON_CPU for paragraph in benchmark.paper()),
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
