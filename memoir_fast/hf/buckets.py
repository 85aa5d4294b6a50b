"""Which rows of a batch are run together: those of about one length, so that little padding is computed."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

# What a call of a block costs however few tokens it is given: its weights are read, which takes as long as so many
# tokens do; and Python and some forty small operations take as long as so many multiplications and additions.
_TOKENS, _OPERATIONS = 20, 5e7

Positions = torch.Tensor | tuple[torch.Tensor, ...]
"""Positions in a batch: marked in bool [B, S], or as rows and columns, int64 [T] each."""


class Bucket(NamedTuple):
    """Some rows of a batch that is padded on the right, and how many of its tokens they reach to."""

    rows: torch.Tensor  # int64 [b], ascending
    width: int

    def of(self, values: torch.Tensor) -> torch.Tensor:
        """These rows of [B, S, ...], up to their width."""
        return values[self.rows, : self.width]


def buckets(attention_mask: torch.Tensor, hidden: int) -> list[Bucket]:
    """The rows of a batch, int64 [B, S], in the buckets in which they cost a model of this hidden size least.

    A GPU, and a small model, takes them all at once: there a call costs more than padding does.

    Example:
        >>> import torch
        >>> mask = torch.ones(3, 40, dtype=torch.int64)
        >>> mask[1:, 12:] = 0
        >>> [(one.rows.tolist(), one.width) for one in buckets(mask, hidden=576)]
        [([0], 40), ([1, 2], 12)]
    """
    count, width = attention_mask.shape
    whole = Bucket(torch.arange(count, device=attention_mask.device), width)
    if attention_mask.device.type != "cpu":  # lengths are not looked at, which would wait for the device
        return [whole]
    lengths = attention_mask.sum(dim=1)
    order = lengths.argsort(descending=True, stable=True)
    ends = cheapest(lengths[order].tolist(), _TOKENS + _OPERATIONS / (12 * hidden**2))  # of 12 H^2 weights
    if len(ends) == 1:
        return [whole]
    return [
        Bucket(order[start:end].sort().values, int(lengths[order[start]]))
        for start, end in zip([0, *ends], ends, strict=False)
    ]


def places(together: Sequence[Bucket], positions: Positions) -> tuple[list[Positions], torch.Tensor | None]:
    """Of positions in a batch [B, S], those in each bucket, as they are there; and in which order of all of these,
    bucket after bucket, they are those of the batch again, int64 [T]. None where one bucket has all rows."""
    if len(together) == 1:
        return [positions], None
    rows, columns = positions if isinstance(positions, tuple) else positions.nonzero(as_tuple=True)
    inside = [torch.isin(rows, bucket.rows).nonzero()[:, 0] for bucket in together]
    found: list[Positions] = [
        (torch.searchsorted(bucket.rows, rows[own]), columns[own]) for bucket, own in zip(together, inside, strict=True)
    ]
    return found, torch.cat(inside).argsort()


def cheapest(lengths: Sequence[int], call: float) -> list[int]:
    """Where to end each bucket of rows of these lengths, descending: places in the list, the last its own length.

    A bucket costs its rows times the length of its first, and `call` tokens. Of all splits, the cheapest.
    """
    cost, begins = [0.0], [0]
    for end in range(1, len(lengths) + 1):
        found = [cost[start] + (end - start) * lengths[start] + call for start in range(end)]
        begins.append(min(range(end), key=found.__getitem__))
        cost.append(found[begins[-1]])
    ends, end = [], len(lengths)
    while end:
        ends.append(end)
        end = begins[end]
    return ends[::-1]
