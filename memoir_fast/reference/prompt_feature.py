"""The specification of `prompt_feature` in plain torch."""

import torch

BLOCK = 32  # tokens summed one by one before their sum joins the total


def prompt_feature(x: torch.Tensor, prompt_mask: torch.Tensor, mu: torch.Tensor) -> torch.Tensor:
    """See `memoir_fast.ops.prompt_feature`."""
    batch, tokens, width = x.shape
    if tokens == 0:
        return x.new_full((batch, width), float("nan"), dtype=torch.float32)
    blocks = -(-tokens // BLOCK)
    first = prompt_mask.int().argmax(dim=1, keepdim=True)
    position = first + torch.arange(blocks * BLOCK, device=x.device)  # [B, blocks * BLOCK]
    inside = position.clamp(max=tokens - 1)
    marked = prompt_mask.gather(1, inside) & (position < tokens)
    rows = torch.arange(batch, device=x.device)[:, None]
    values = torch.where(marked[..., None], x[rows, inside].float(), 0.0).view(batch, blocks, BLOCK, width)

    block_sum = torch.zeros((batch, blocks, width), device=x.device)
    for token in range(BLOCK):
        block_sum += values[:, :, token]
    total = torch.zeros((batch, width), device=x.device)
    for block in range(blocks):
        total += block_sum[:, block]
    return total / marked.sum(dim=1, keepdim=True) - mu
