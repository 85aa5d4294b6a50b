"""The specification of `route_rows` in plain torch."""

import torch

from memoir_fast.reference.mask_columns import mask_columns


def route_rows(
    mask: torch.Tensor, page: torch.Tensor, route: torch.Tensor, k: int, width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `memoir_fast.ops.route_rows`."""
    edit = route.clamp(min=0)
    columns = mask_columns(mask.index_select(0, edit), k)
    rows = torch.add(columns, page.index_select(0, edit)[:, None], alpha=width)
    if len(route) < 2:
        return rows, route.clamp(max=0)
    first = (route[:, None] == route).max(dim=1).indices  # of equal ones, the first is told
    return rows, torch.where(route >= 0, first.int(), -1)
