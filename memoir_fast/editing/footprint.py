"""What learning costs in memory above the model's own, and how many edits fit into one batch."""

from pathlib import Path
from typing import NamedTuple

import torch

from memoir_fast.editing.context import EditContext
from memoir_fast.hf.tokens import Row
from memoir_fast.recipe import Recipe

LARGEST_BATCH = 16
_SHARE = 0.5  # of the free memory that a batch may take
_UNKNOWN = 4 << 30  # taken for free where the system does not say


class Footprint(NamedTuple):
    """Bytes that learning one batch takes at its peak."""

    rows: int
    """The active rows, their two moments and a step's temporaries (Adam), or Gram matrix and coefficients (SGD)."""
    tokens: int
    """The edited layer's inputs, the hidden states behind its block, and the residuals."""
    upper: int
    """What backward needs of the upper layers, and logits at target positions; an estimate."""

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self)


def footprint(context: EditContext, rows: list[list[Row]], recipe: Recipe) -> Footprint:
    """Peak bytes of learning these edits as one batch by `recipe`, method "fast"; there is no copy of W0 or W_m.

    With E edits of k columns, n tokens in all (B rows padded to S), D inputs and O outputs of the layer, H hidden size,
    F inner size of an MLP, L blocks behind the layer, T target tokens (with `boundary`, one more per row) and V
    vocabulary, in numbers of 4 bytes:

    - Adam: O * (3 k E + min(D, k E) + 3 k), with damping (E + 2) k^2 more; SGD: n^2 + 2 n O. With further layers, O is
      that of all layers, damping is each layer's, and 2 k E O more are their rows and the gradients of these.
    - n (D + k) + B S (D + H) + 4 B S O, and n (D + k) + 4 B S O for each further layer.
    - max(L, 1) B S (12 H + 6 F) + 4 T V: a block's own work counts even where none has to be kept for backward.

    Quiet rows, of which few edits have any, are not counted.
    """
    layer, config = context.layer, context.model.config
    width, outputs, k = layer.in_features, layer.out_features, layer.k
    edits = len(rows)
    flat = [row for own in rows for row in own]
    n = sum(len(row.ids) for row in flat)
    padded = len(flat) * max(len(row.ids) for row in flat)
    targets = sum(len(row.ids) - row.prompt + recipe.boundary for row in flat)
    if recipe.optimizer == "adam":
        own = layer.memory.outputs * (3 * k * edits + min(width, k * edits) + 3 * k)
        own += (1 + len(layer.further)) * (edits + 2) * k * k if recipe.damping else 0
        own += 2 * k * edits * (layer.memory.outputs - outputs)
    else:
        own = n * n + 2 * n * outputs
    tokens = n * (width + k) + padded * (width + outputs) + 4 * padded * outputs
    tokens += sum(n * (width + k) + 4 * padded * one.out_features for one in layer.further)
    hidden = config.hidden_size
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * hidden
    upper = max(context.upper.blocks_behind, 1) * padded * (12 * hidden + 6 * inner) + 4 * targets * config.vocab_size
    wide = torch.promote_types(layer.memory.weight.dtype, torch.float32).itemsize
    return Footprint(wide * own, wide * tokens, wide * upper)


def largest_batch(context: EditContext, rows: list[Row], recipe: Recipe) -> int:
    """How many edits like this one may be learned together: from the free memory, at most 16.

    What `Interference` has yet to take, one matrix float32 [D, D], is set aside first.
    """
    one = footprint(context, [rows], recipe).total
    free = _free_bytes(context.layer.memory.weight.device)
    if recipe.damping:
        free -= context.interference.bytes_to_come(context.layer.in_features)
    found = max(1, min(LARGEST_BATCH, int(_SHARE * free) // one))
    return int(context.layer.agreed(torch.tensor(found, device=context.layer.memory.table.device)))


def _free_bytes(device: torch.device) -> int:
    """What can be taken now: on a GPU also what torch keeps for itself, on the CPU also what files are cached in."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        (available,) = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError):  # not Linux
        return _UNKNOWN
    return 1024 * int(available)
