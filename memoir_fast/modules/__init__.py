"""Drop-in torch modules over the ops. They know no transformer."""

from memoir_fast.modules.mask_store import MaskStore
from memoir_fast.modules.memoir_linear import MemoirLinear
from memoir_fast.modules.residual_memory import ResidualMemory
from memoir_fast.modules.tophash import TopHash

__all__ = ["MaskStore", "MemoirLinear", "ResidualMemory", "TopHash"]
