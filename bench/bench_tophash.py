"""Throughput of `tophash`: from a feature to a packed mask and its columns."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import peers
import torch
from cases import Absent, Case, Peer, Prepared, Settings, Wrong, most_rows, require_equal, some_rows
from shapes import DISTINCT, LLAMA, SMOLLM, Layer

from memoir_fast import ops
from memoir_fast.reference import tophash as reference

_MOST_FEATURES = 1024  # on the CPU: the other peers' time per feature does not change further on


def make(layer: Layer, rows: int, settings: Settings) -> Prepared:
    """Normal features."""
    device = settings.device
    permutation = torch.randperm(layer.width).int().to(device)

    def draw() -> tuple:
        return torch.randn((rows, layer.width), device=device), layer.k, permutation

    def check(inputs: tuple, result: Any) -> None:
        chosen = some_rows(rows, most_rows(device), device)
        expected = reference.tophash(inputs[0][chosen], *inputs[1:])
        if isinstance(result, torch.Tensor):  # the published way's bool mask
            return require_equal(reference.pack(result[chosen]), expected[0], "tophash, mask")
        if len(result) != 2:
            raise Wrong(f"tophash must return mask and columns, got {len(result)} values")
        for name, got, wanted in zip(("mask", "columns"), result, expected, strict=True):
            if len(got) != rows:
                raise Wrong(f"tophash, {name}: {len(got)} rows for {rows} features")
            require_equal(got[chosen], wanted, f"tophash, {name}")

    return Prepared(
        run=partial(ops.tophash, check=False),
        draw=draw,
        check=check,
        bytes=4 * rows * layer.width + 4 * layer.width + 4 * rows * (layer.words + layer.k),
        ceiling="copy",
        peers=_peers(layer, rows, settings),
    )


def _peers(layer: Layer, rows: int, settings: Settings) -> dict[str, Peer | Absent]:
    on_cpu = settings.device == "cpu"
    if on_cpu and rows > _MOST_FEATURES:
        return {"torch.topk and packing": Absent("seconds per call at this size")}
    found: dict[str, Peer | Absent] = {
        "torch eager, published": Peer(peers.tophash_published),
        "torch.topk and packing": Peer(peers.tophash_topk_pack),
        "torch.topk alone": peers.torch_topk(),
        "torch.compile": peers.compiled(peers.tophash_topk_pack, settings)
        if layer == LLAMA
        else Absent(f"compiled for {LLAMA.model} only"),
        "numpy": Peer(peers.tophash_numpy) if on_cpu else Absent("runs on the CPU"),
    }
    if not on_cpu:
        found["FlashInfer top_k alone"] = peers.flashinfer_topk()
    return found


def cases(settings: Settings) -> Iterator[Case]:
    """One feature of every known layer, and many rows at once."""
    wanted = [(layer, 1) for layer in DISTINCT] + [(LLAMA, 64), (LLAMA, 8192)]
    if settings.device == "cuda":
        wanted = [(LLAMA, 1), (LLAMA, 64), (LLAMA, 8192), (SMOLLM, 1)]
    for layer, rows in [(SMOLLM, 1)] if settings.quick else wanted:
        name = f"{rows} row{'s' * (rows > 1)}, D={layer.width}, k={layer.k}"
        yield Case("tophash", name, layer.sizes | {"B": rows}, partial(make, layer, rows))
