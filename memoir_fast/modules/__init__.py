"""Drop-in torch modules over the ops. They know no transformer."""

from memoir_fast.modules.hashing import TopHash
from memoir_fast.modules.mask_store import MaskStore
from memoir_fast.modules.memoir_linear import MemoirLinear
from memoir_fast.modules.residual_memory import ResidualMemory

__all__ = ["MaskStore", "MemoirLinear", "ResidualMemory", "TopHash"]
