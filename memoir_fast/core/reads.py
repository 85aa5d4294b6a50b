"""What an edit reads, kept for as long as its page takes more edits: a page that is learned on is not read again."""

from typing import NamedTuple

import torch

from memoir_fast.modules import MemoirLinear

_SHARE = 20  # 2 bytes a token and column are at most a tenth of the edit's own rows of memory
_LEAST = 32  # tokens


class Reads(NamedTuple):
    """The edited layer's inputs on an edit's plain row, at the edit's columns."""

    inputs: torch.Tensor
    """bfloat16 [tokens, k], on the CPU. Counted as they are kept, they are the same after a load, to the last bit."""
    stop: bool
    """The row was closed by the end token."""

    @classmethod
    def of(cls, inputs: torch.Tensor, stop: bool) -> "Reads":
        """Those of inputs [tokens, k] in any type, on any device."""
        return cls(inputs.detach().bfloat16().cpu(), stop)

    def short(self, layer: MemoirLinear) -> bool:
        """Whether they take little beside the edit's rows of memory: a tenth, or 32 tokens where that is more."""
        most = layer.out_features * layer.memory.table.element_size() // _SHARE
        return len(self.inputs) <= max(_LEAST, most)
