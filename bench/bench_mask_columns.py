"""Throughput of `mask_columns`: the columns of the masks that a batch's routes have found."""

from collections.abc import Iterator
from functools import partial

import torch
from cases import Case, Peer, Prepared, Settings, require_equal
from shapes import LLAMA, SMOLLM, Layer, masks

from memoir_fast import ops
from memoir_fast.reference import mask_columns as reference
from memoir_fast.reference.tophash import unpack


def make(layer: Layer, rows: int, settings: Settings) -> Prepared:
    """Random masks of about k bits."""

    def draw() -> tuple:
        return masks(rows, layer, settings.device), layer.k

    def check(inputs: tuple, result: torch.Tensor) -> None:
        require_equal(result, reference.mask_columns(*inputs), "mask_columns")

    return Prepared(
        run=ops.mask_columns,
        draw=draw,
        check=check,
        bytes=4 * rows * (layer.words + layer.k),
        peers={
            "torch, unpacked": Peer(reference.mask_columns),
            "torch.nonzero alone": Peer(lambda mask, k: unpack(mask, layer.width).nonzero(), same=False),
        },
    )


def cases(settings: Settings) -> Iterator[Case]:
    """One route, and a batch of them."""
    wanted = [(LLAMA, 1), (LLAMA, 64), (SMOLLM, 1)]
    for layer, rows in [(SMOLLM, 1)] if settings.quick else wanted:
        name = f"{rows} row{'s' if rows > 1 else ''}, D={layer.width}, k={layer.k}"
        yield Case("mask_columns", name, layer.sizes | {"B": rows}, partial(make, layer, rows))
