"""`Routed`: where the sequences of a pass read the memory."""

from typing import Any, NamedTuple

import torch

from memoir_fast.checks import readable


class Routed(NamedTuple):
    """Where each sequence of a pass reads the memory."""

    rows: torch.Tensor
    """int32 [B, k], rows of memory."""
    route: torch.Tensor
    """int32 [B]: whose of these rows each sequence reads, or -1: none. Those of one edit read the first one's. Of
    several sequences in a row, `each_token`: int32 [B * S], and `helped` is None."""
    helped: torch.Tensor | None = None
    """bool [B, S], the tokens that the memory adds to; None: all."""
    each_token: bool = False
    """Whether each token is routed by itself."""
    memory: Any = None
    """The `ResidualMemory` that is read; None: that of the view in force."""
    others: tuple["Routed", ...] = ()
    """Of the same pass, what is read of other memories, where its sequences see several."""

    def to(self, device: torch.device) -> "Routed":
        """The same on another device."""
        if self.rows.device == device:
            return self
        helped = None if self.helped is None else self.helped.to(device)
        return self._replace(rows=self.rows.to(device), route=self.route.to(device), helped=helped)

    def sequences(self, x: torch.Tensor) -> torch.Tensor:
        """Inputs [B, S, D] as they are, a route for each row; or as [B * S, 1, D], where each token has one."""
        return x.flatten(0, 1)[:, None] if self.each_token else x


def first_alike(edit: torch.Tensor) -> torch.Tensor:
    """Per sequence that follows an edit, int32 [B], the first of the batch that follows the same; -1 where it is -1."""
    if len(edit) < 2:
        return edit.clamp(max=0).int()
    first = (edit[:, None] == edit).max(dim=1).indices  # of equal ones, the first is told
    return torch.where(edit >= 0, first.int(), edit.int())


def follows_nothing(route: torch.Tensor) -> bool:
    """True where every sequence is known to follow no edit; a device is not asked, which would wait for it."""
    return readable(route) and max(route.tolist(), default=-1) < 0
