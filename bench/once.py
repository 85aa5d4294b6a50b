"""Runs the three hot ops once at LLaMA-3-8B's sizes on the CUDA device: what a profiler is pointed at.

Only the calls between the profiler's start and stop are to be looked at (`ncu --profile-from-start off`): inputs are
made, and kernels compiled, before.
"""

import torch
from shapes import LLAMA, columns, count_of, masks, thresholds_of

from memoir_fast import ops


def main() -> None:
    """Search among 100,000 edits, hash one feature, multiply one token."""
    device, layer = "cuda", LLAMA
    store, query = masks(100_000, layer, device), masks(1, layer, device)
    count, least = count_of(len(store), device), thresholds_of(len(store), layer.min_overlap, device)
    feature, permutation = torch.randn((1, layer.width), device=device), torch.randperm(layer.width).int().to(device)
    x = torch.randn((1, 1, layer.width), device=device, dtype=torch.bfloat16)
    memory = torch.randn((layer.width, layer.outputs), device=device, dtype=torch.bfloat16)
    active, route = columns(1, layer, device), torch.zeros(1, dtype=torch.int32, device=device)

    def hot() -> None:
        ops.mask_match(query, store, count, least)
        ops.tophash(feature, layer.k, permutation, check=False)
        ops.masked_linear(x, memory, active, route)
        torch.cuda.synchronize()

    hot()
    torch.cuda.profiler.start()
    hot()
    torch.cuda.profiler.stop()


if __name__ == "__main__":
    main()
