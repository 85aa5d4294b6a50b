"""The scans of packed masks on paper: the extension's machine code, and what it takes on an H200 at least."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import machine_code
from predict import H200

ROW_BYTES, PIECES = 1792, 112  # a mask of 14,336 bits, and in pieces of 16 bytes
POPC, LANES, SHARED = 16, 128, 128  # per clock and SM: bit counts, instructions of one lane, bytes of shared memory
BMMA, L2 = 0.54, 5.5e12  # products per clock and SM, bytes per second: others' figures for GH200 and H100
ROW_LANES, THREADS, RESIDENT = 8, 256, 2  # of popc_scan, as in csrc/overlap_kernels.cuh

ASSUMED = (
    "Bounds, never measured. D=14336, cold second-level cache; counted in the machine code for sm_90 of the "
    f"built extension. Bounds: bytes at {H200.bandwidth / 1e12} TB/s; {POPC} bit counts and {LANES} lanes of "
    f"instructions per clock and SM, {H200.sms} SMs at {H200.clock / 1e9} GHz; {BMMA} one-bit products (m16n8k256) per "
    f"clock and SM, as others measured on a GH200; {SHARED} bytes of shared memory per clock and SM; {L2 / 1e12} TB/s "
    "from the second-level cache to the SMs, as others measured on an H100. The SM with the most blocks counts. A gap "
    f"is {H200.launch * 1e6} us: one where the scan starts dependently, while its scratch memory is being cleared; two "
    "with a memset between two kernels. Latency of memory and of the last block's reduction are not in it, nor what "
    "the prefetch gains beyond the gap: that depends on how early the kernel before lets the scan start."
)


@dataclass(frozen=True)
class Bounds:
    """Seconds that each resource needs at least, and the gaps between kernels."""

    kernel: str
    bounds: dict[str, float]
    gaps: int

    @property
    def seconds(self) -> float:
        return max(self.bounds.values()) + self.gaps * H200.launch


def popc(code: machine_code.MachineCode, rows: int) -> Bounds:
    """One query: the busiest SM's warps, each four rows at a time."""
    threads = THREADS
    while threads > 64 and -(-rows // (threads // ROW_LANES)) < H200.sms * RESIDENT:
        threads //= 2
    blocks = min(-(-rows // (threads // ROW_LANES)), H200.sms * RESIDENT * THREADS // threads)
    turns = -(-rows // (blocks * threads // ROW_LANES)) * -(-blocks // H200.sms) * threads // 32  # of a warp, on one SM
    inner, outer = (sorted(code.loops("POPC"), key=len)[i] for i in (0, -1))
    trips = PIECES // ROW_LANES / (sum(name.startswith("LDG") for name in inner) / 2)
    issued = len(outer) + (trips - 1) * len(inner)
    counted = PIECES // ROW_LANES * 4
    bounds = {
        "bytes": (rows + 1) * ROW_BYTES / H200.bandwidth,
        "bit counts": turns * counted * 32 / POPC / H200.clock,
        "instructions": turns * issued * 32 / LANES / H200.clock,
    }
    return Bounds("popc_scan, 1 query", bounds, gaps=1)


def mma(code: machine_code.MachineCode, tiling: tuple[int, ...], queries: int, rows: int) -> Bounds:
    """Tiles of queries and rows: the SM with the most blocks. A tile is computed whole, whatever part of it is used."""
    warps_m, warps_n, tiles_m, tiles_n = tiling
    tile_queries, tile_rows = warps_m * tiles_m * 16, warps_n * tiles_n * 8
    blocks = -(-queries // tile_queries) * -(-rows // tile_rows)
    body = code.loops("BMMA")[0]
    products = sum(name.startswith("BMMA") for name in body)
    trips = PIECES // 2 * tiles_m * tiles_n / products  # a product takes two pieces of every row
    busiest = -(-blocks // H200.sms) * warps_m * warps_n * trips  # passes of a warp through the loop
    fragments = sum(name.startswith("LDSM") and name.endswith(".4") for name in body)  # 512 bytes each
    bounds = {
        "bytes": (rows + queries) * ROW_BYTES / H200.bandwidth,
        "matrix products": busiest * products / BMMA / H200.clock,
        "instructions": busiest * len(body) * 32 / LANES / H200.clock,
        "shared memory": busiest * fragments * 512 / SHARED / H200.clock,
        "level-2 cache": (-(-rows // tile_rows) * queries + -(-queries // tile_queries) * rows) * ROW_BYTES / L2,
    }
    return Bounds(f"mma_scan, {tile_queries} x {tile_rows}", bounds, gaps=2)


def _bounds(queries: int, rows: int, kernels: dict[str, machine_code.MachineCode]) -> Bounds:
    """The kernel that the extension chooses on compute capability 9.0."""
    if queries == 1:
        return popc(next(code for name, code in kernels.items() if "popc_scanILi1ELb1E" in name), rows)
    tiled = {}
    for name, code in kernels.items():
        if found := re.search(r"mma_scanINS_6TilingILi(\d)ELi(\d)ELi(\d)ELi(\d)EEELb1E", name):
            tiled[tuple(map(int, found.groups()))] = code
    small, large = sorted(tiled, key=lambda tiling: tiling[0] * tiling[2])
    tiling = small if queries <= small[0] * small[2] * 16 else large
    return mma(tiled[tiling], tiling, queries, rows)


def paper(sizes: Sequence[tuple[int, int]]) -> list[str]:
    """Paragraphs and a table in Markdown, for numbers of queries and of rows; without CUDA kernels, the reason why."""
    try:
        kernels = machine_code.built_kernels(90)
    except LookupError as error:
        return [f"None: {error}."]
    lines = [
        "| queries | N | kernel | bounds, us | gaps | at least us | bound by |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for queries, rows in sizes:
        found = _bounds(queries, rows, kernels)
        bounds = ", ".join(f"{name} {seconds * 1e6:.1f}" for name, seconds in found.bounds.items())
        lines.append(
            f"| {queries:,} | {rows:,} | {found.kernel} | {bounds} | {found.gaps} | {found.seconds * 1e6:.1f} "
            f"| {max(found.bounds, key=found.bounds.__getitem__)} |"
        )
    return [ASSUMED, "\n".join(lines)]
