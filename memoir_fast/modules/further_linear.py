"""`FurtherLinear`: a linear layer behind a `MemoirLinear`, to which the same decision adds."""

from typing import Any

import torch
from torch import nn

from memoir_fast.errors import MemoirError
from memoir_fast.modules import compiled, model_state
from memoir_fast.modules.adding import added
from memoir_fast.modules.base_layer import AroundBase, offloaded
from memoir_fast.modules.replaceable import Replaceable


class FurtherLinear(AroundBase, Replaceable, nn.Module):
    """Drop-in for a linear layer: its output, plus what the edits say here that the edited layer's sequences follow.

    It hashes nothing, decides nothing and holds no memory: where its sequences read W_m was decided at the edited
    layer, in the same forward pass, and the outputs that are its own lie behind those of the layers before it. It reads
    the same columns of its own inputs, of which it has as many.

    Args:
        base (nn.Module): as a `MemoirLinear`'s.
        edited (MemoirLinear): the edited layer.
        outputs (slice): which outputs of its memory are this layer's.

    Example:
        >>> import torch
        >>> from memoir_fast.modules import MemoirLinear
        >>> from memoir_fast.modules.further_linear import FurtherLinear
        >>> edited = MemoirLinear(torch.nn.Linear(64, 4), k=8, beside=2)
        >>> further = FurtherLinear(torch.nn.Linear(64, 2), edited, slice(4, 6))
        >>> edited.memory.table.shape[1], edited.out_features, further.out_features
        (6, 4, 2)
    """

    router = None
    """It has none of its own, and no part of a memory in its state."""

    def __init__(self, base: Any, edited: Any, outputs: slice) -> None:
        super().__init__()
        self.base, self.outputs, self.offloaded = base, outputs, offloaded(base)
        self._edited = (edited,)  # in a tuple, or it would be a part of this module
        self.register_state_dict_post_hook(model_state.base_keys_as_own)
        self.register_load_state_dict_pre_hook(model_state.own_keys_as_base)
        self.train(base.training)

    @property
    def edited(self) -> Any:
        """The `MemoirLinear` whose decisions it goes by."""
        return self._edited[0]

    @property
    def in_features(self) -> int:
        """D."""
        return self.edited.in_features  # type: ignore[no-any-return]

    @property
    def out_features(self) -> int:
        """Its outputs."""
        return self.outputs.stop - self.outputs.start  # type: ignore[no-any-return]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [B, S, D], or [B * S, D] with all tokens in one row -> the same shape with its outputs.

        Raises:
            MemoirError: the edited layer was not reached before in this pass, so nothing is decided; or `torch.compile`
                looks at it.
        """
        compiled.require_not_compiled()
        y = self.base(x)
        if x.dim() == 2:
            rows = self.edited.router.in_rows(x)
            return self._joined(rows, y.view(*rows.shape[:2], -1)).flatten(0, 1)
        return self._joined(x, y)

    def _joined(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The output for inputs x [B, S, D], of which the base layer makes y."""
        edited = self.edited
        if edited.replacement is not None:  # an edit is learned: nothing is decided in such a pass
            own = self.replacement
            return y if own is None else own(x, y)
        if edited.router is None:
            raise MemoirError("a further layer goes by what the edited layer decides in a language model: it has none")
        try:
            edited.turns.enter()
            routed = edited.router.again(x)
            return y if routed is None else added(y, x, routed, edited.view.memory, self.outputs)
        finally:
            edited.turns.leave()

    def extra_repr(self) -> str:
        return f"outputs={self.outputs.start}..{self.outputs.stop}"
