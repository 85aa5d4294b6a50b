"""`PromptSums`: what is kept of prompts that are being read, sentence by sentence, for their routing codes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

SENTENCES = 8
"""Q, the latest sentences that are kept of a prompt."""

PLAIN, USER, OTHER = 0, 1, 2
"""Who speaks: nobody has opened a turn yet, the user, or somebody else."""


@dataclass(frozen=True)
class PromptSums:
    """Weighted sums over the latest Q sentences of B prompts, the one that is being read first; never changed in place.

    A later part of the prompt is joined to it by `RoutingCode.read`, in whatever parts the prompt comes.
    """

    sums: torch.Tensor
    """float32 [B, Q, H], the weighted sum of each sentence's tokens."""
    mass: torch.Tensor
    """float32 [B, Q], the sum of their weights."""
    asks: torch.Tensor
    """bool [B, Q]: has a question mark, and belongs to the latest turn."""
    latest: torch.Tensor
    """bool [B, Q]: belongs to the latest turn."""
    role: torch.Tensor
    """int64 [B]: PLAIN until a turn is opened, then USER or OTHER."""
    ended: torch.Tensor
    """bool [B]: a sentence has ended behind the last token that weighs anything."""
    words: torch.Tensor
    """int64 [B, N]: the token ids of the latest turn that weigh anything, -1 between and before them."""
    tail: torch.Tensor
    """int64 [B, T]: the latest token ids, -1 before the first; marks of turns may begin in them."""

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "PromptSums":
        """`change` of every tensor: rows selected, repeated or moved."""
        return PromptSums(*(change(getattr(self, name)) for name in self.__dataclass_fields__))

    @property
    def chat(self) -> torch.Tensor:
        """bool [B]: a turn was opened."""
        return self.role != PLAIN
