"""mask_match of the CUDA extension on paper: its built code is disassembled, its time on an H200 predicted."""

import re
from dataclasses import dataclass

import machine_code

ROW_BYTES, PIECES = 1792, 112  # a mask of 14,336 bits, and in pieces of 16 bytes
CASES = [(1, 7_000), (1, 100_000), (1, 1_000_000), *((b, n) for b in (16, 64, 2048) for n in (7_000, 100_000))]
BANDWIDTH, CLOCK, SMS = 4.3e12, 1.83e9, 132  # H200: copy bandwidth and clock as planned with
POPC, LANES, SHARED = 16, 128, 128  # per clock and SM: bit counts, instructions of one lane, bytes of shared memory
BMMA, L2 = 0.54, 5.5e12  # products per clock and SM, bytes per second: others' figures for GH200 and H100
LAUNCH = 1.3e-6  # seconds between two kernels of a CUDA graph
ROW_LANES, WARP_ROWS, THREADS, RESIDENT = 8, 4, 256, 2  # of popc_scan, as in csrc/overlap_kernels.cuh
TARGETS = {
    (1, 7_000): "3 us after tophash",
    (1, 100_000): "92 % of copy bandwidth, 45.3 us",
    (1, 1_000_000): "95 % of copy bandwidth, 438.7 us",
    (2048, 7_000): "70 us",
}


@dataclass(frozen=True)
class Prediction:
    """Seconds that each resource needs at least, and the gaps between kernels."""

    kernel: str
    bounds: dict[str, float]
    gaps: int

    @property
    def seconds(self) -> float:
        return max(self.bounds.values()) + self.gaps * LAUNCH


def popc(code: machine_code.MachineCode, rows: int) -> Prediction:
    """One query: the busiest SM's warps, each four rows at a time."""
    threads = THREADS
    while threads > 64 and -(-rows // (threads // ROW_LANES)) < SMS * RESIDENT:
        threads //= 2
    blocks = min(-(-rows // (threads // ROW_LANES)), SMS * RESIDENT * THREADS // threads)
    turns = -(-rows // (blocks * threads // ROW_LANES)) * -(-blocks // SMS) * threads // 32  # of a warp, on one SM
    inner, outer = (sorted(code.loops("POPC"), key=len)[i] for i in (0, -1))
    trips = PIECES // ROW_LANES / (sum(name.startswith("LDG") for name in inner) / 2)
    issued = len(outer) + (trips - 1) * len(inner)
    counted = PIECES // ROW_LANES * 4
    bounds = {
        "bytes": (rows + 1) * ROW_BYTES / BANDWIDTH,
        "bit counts": turns * counted * 32 / POPC / CLOCK,
        "instructions": turns * issued * 32 / LANES / CLOCK,
    }
    return Prediction("popc_scan, 1 query", bounds, gaps=1)


def mma(code: machine_code.MachineCode, tiling: tuple[int, ...], queries: int, rows: int) -> Prediction:
    """Tiles of queries and rows: the SM with the most blocks. A tile is computed whole, whatever part of it is used."""
    warps_m, warps_n, tiles_m, tiles_n = tiling
    tile_queries, tile_rows = warps_m * tiles_m * 16, warps_n * tiles_n * 8
    blocks = -(-queries // tile_queries) * -(-rows // tile_rows)
    body = code.loops("BMMA")[0]
    products = sum(name.startswith("BMMA") for name in body)
    trips = PIECES // 2 * tiles_m * tiles_n / products  # a product takes two pieces of every row
    busiest = -(-blocks // SMS) * warps_m * warps_n * trips  # passes of a warp through the loop
    fragments = sum(name.startswith("LDSM") and name.endswith(".4") for name in body)  # 512 bytes each
    bounds = {
        "bytes": (rows + queries) * ROW_BYTES / BANDWIDTH,
        "matrix products": busiest * products / BMMA / CLOCK,
        "instructions": busiest * len(body) * 32 / LANES / CLOCK,
        "shared memory": busiest * fragments * 512 / SHARED / CLOCK,
        "level-2 cache": (-(-rows // tile_rows) * queries + -(-queries // tile_queries) * rows) * ROW_BYTES / L2,
    }
    return Prediction(f"mma_scan, {tile_queries} x {tile_rows}", bounds, gaps=2)


def predict(queries: int, rows: int, kernels: dict[str, machine_code.MachineCode]) -> Prediction:
    """The kernel that csrc/mask_overlap.cu chooses on compute capability 9.0."""
    if queries == 1:
        return popc(next(code for name, code in kernels.items() if "popc_scanILi1ELb1E" in name), rows)
    tiled = {}
    for name, code in kernels.items():
        if found := re.search(r"mma_scanINS_6TilingILi(\d)ELi(\d)ELi(\d)ELi(\d)EEELb1E", name):
            tiled[tuple(map(int, found.groups()))] = code
    small, large = sorted(tiled, key=lambda tiling: tiling[0] * tiling[2])
    tiling = small if queries <= small[0] * small[2] * 16 else large
    return mma(tiled[tiling], tiling, queries, rows)


def section() -> list[str]:
    """Paragraphs and a table in Markdown; the reason why not, where the extension has no CUDA kernels."""
    title = "## mask_match of the CUDA extension, predicted for an H200"
    try:
        kernels = machine_code.built_kernels(90)
    except LookupError as error:
        return [title, f"Not predicted: {error}."]
    rows = [
        "| queries | N | kernel | bounds, us | gaps | predicted us | bound by | target |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for queries, stored in CASES:
        found = predict(queries, stored, kernels)
        bounds = ", ".join(f"{name} {seconds * 1e6:.1f}" for name, seconds in found.bounds.items())
        rows.append(
            f"| {queries:,} | {stored:,} | {found.kernel} | {bounds} | {found.gaps} | {found.seconds * 1e6:.1f} "
            f"| {max(found.bounds, key=found.bounds.__getitem__)} | {TARGETS.get((queries, stored), '')} |"
        )
    return [
        title,
        "Predicted and never measured. D=14336, cold second-level cache; counted in the machine code for sm_90 of the "
        f"built extension. Bounds: bytes at {BANDWIDTH / 1e12} TB/s; {POPC} bit counts and {LANES} lanes of "
        f"instructions per clock and SM, {SMS} SMs at {CLOCK / 1e9} GHz; {BMMA} one-bit products (m16n8k256) per clock "
        f"and SM, as others measured on a GH200; {SHARED} bytes of shared memory per clock and SM; {L2 / 1e12} TB/s "
        "from the second-level cache to the SMs, as others measured on an H100. The SM with the most blocks counts. A "
        f"gap is {LAUNCH * 1e6} us: one where the scan starts dependently, while its scratch memory is being cleared; "
        "two with a memset between two kernels. Latency of memory and of the last block's reduction are not in it, nor "
        "what the prefetch gains beyond the gap: that depends on how early the kernel before lets the scan start.",
        "\n".join(rows),
    ]
