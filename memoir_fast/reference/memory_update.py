"""The specification of `memory_update` in plain torch."""

import torch


def memory_update(memory: torch.Tensor, columns: torch.Tensor, a: torch.Tensor, c: torch.Tensor) -> None:
    """See `memoir_fast.ops.memory_update`."""
    wide = torch.promote_types(torch.promote_types(memory.dtype, a.dtype), torch.float32)
    active = columns.long()
    memory[active] = (memory[active].to(wide) + a.to(wide).T @ c.to(wide)).to(memory.dtype)
