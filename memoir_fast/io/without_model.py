"""A saved memory without its model, on a layer of the shapes that its files state: what a journal is tried on."""

from types import SimpleNamespace
from typing import Any

from torch import nn

from memoir_fast.core.live_edits import LiveEdits
from memoir_fast.errors import CheckpointError
from memoir_fast.io import checkpoint, codes
from memoir_fast.io.checkpoint import SavedMemory
from memoir_fast.modules import MemoirLinear
from memoir_fast.modules.base_layer import device_beside
from memoir_fast.modules.memoir_linear import linear_shape


def without_model(saved: SavedMemory, base: nn.Module | None = None) -> Any:
    """What `changes.apply` takes, as the snapshot says; its model is missing.

    Args:
        saved (SavedMemory): as `checkpoint.read` gives it.
        base (nn.Module, optional): the layer that it is of, which is not changed. Default: one on the CPU, whose weight
            takes addresses alone.

    Raises:
        CheckpointError: its settings and its tensors do not fit each other.
    """
    tensors = saved.tensors
    width, outputs = len(tensors["mu"]), tensors["memory_values"].shape[1]
    try:
        if base is None:
            base = nn.utils.skip_init(nn.Linear, width, outputs, bias=False, dtype=tensors["memory_values"].dtype)
        code = None
        if saved.config.routing == "early" and saved.routing is not None:
            code = codes.read_code(tensors, saved.routing, device_beside(base))
        config = saved.config
        given = (config.seed, config.max_edits, code, config.max_pages)
        layer = MemoirLinear(base, config.k or 0, saved.tau, *given, beside=outputs - linear_shape(base)[1])
        memory = SimpleNamespace(
            layer=layer, edits=LiveEdits(layer), config=config, prefixes=[], calibration=None, background=None
        )
        checkpoint.fill(memory, saved)  # type: ignore[arg-type]
    except (KeyError, TypeError, ValueError, RuntimeError, MemoryError, OverflowError) as error:
        raise CheckpointError(
            f"the settings in {saved.folder} do not fit its tensors: {type(error).__name__}: {error}"
        ) from error
    return memory
