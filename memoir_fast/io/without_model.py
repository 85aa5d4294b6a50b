"""A saved memory without its model, on a layer of the shapes that its files state: what a journal is tried on."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from memoir_fast.core.live_edits import LiveEdits
from memoir_fast.errors import CheckpointError
from memoir_fast.io import checkpoint, codes
from memoir_fast.io.checkpoint import SavedMemory
from memoir_fast.modules import MemoirLinear


def without_model(saved: SavedMemory) -> Any:
    """What `changes.apply` takes, as the snapshot says, on the CPU; its model is missing.

    It takes the memory's own size, and of the layer's weight addresses alone.

    Args:
        saved (SavedMemory): as `checkpoint.read` gives it.

    Raises:
        CheckpointError: its settings and its tensors do not fit each other.
    """
    tensors = saved.tensors
    width, outputs = len(tensors["mu"]), tensors["memory_values"].shape[1]
    try:
        base = nn.utils.skip_init(nn.Linear, width, outputs, bias=False, dtype=tensors["memory_values"].dtype)
        code = None
        if saved.config.routing == "early" and saved.routing is not None:
            code = codes.read_code(tensors, saved.routing, torch.device("cpu"))
        config = saved.config
        layer = MemoirLinear(base, config.k or 0, saved.tau, config.seed, config.max_edits, code, config.max_pages)
        memory = SimpleNamespace(
            layer=layer, edits=LiveEdits(layer), config=config, prefixes=[], calibration=None, background=None
        )
        checkpoint.fill(memory, saved)  # type: ignore[arg-type]
    except (KeyError, TypeError, ValueError, RuntimeError, MemoryError, OverflowError) as error:
        raise CheckpointError(
            f"the settings in {saved.folder} do not fit its tensors: {type(error).__name__}: {error}"
        ) from error
    return memory
