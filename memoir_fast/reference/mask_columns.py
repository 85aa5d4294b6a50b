"""The specification of `mask_columns` in plain torch."""

import torch

from memoir_fast.mask_format import BITS, unpack


def mask_columns(mask: torch.Tensor, k: int) -> torch.Tensor:
    """See `memoir_fast.ops.mask_columns`."""
    bits = unpack(mask, BITS * mask.shape[1])
    place = bits.cumsum(dim=1) - 1  # of each set bit among those of its row
    columns = mask.new_full((len(mask), k), -1)
    row, column = (bits & (place < k)).nonzero(as_tuple=True)
    columns[row, place[row, column]] = column.int()
    return columns
