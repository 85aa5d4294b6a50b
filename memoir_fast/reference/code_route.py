"""The specification of `code_route` in plain torch."""

import torch


def code_route(
    row: torch.Tensor, overlap: torch.Tensor, owner: torch.Tensor, room: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `memoir_fast.ops.code_route`."""
    rank = overlap + ((row >= 0).long() << 32)  # a code that matches comes before all that do not
    best = rank.max(dim=1, keepdim=True).indices  # of equal ones, the first is told
    row, overlap = row.gather(1, best)[:, 0], overlap.gather(1, best)[:, 0]
    at = row.clamp(min=0)
    leads = (row >= 0) & (room.index_select(0, at) > 0)
    return torch.where(leads, owner.index_select(0, at), -1), overlap
