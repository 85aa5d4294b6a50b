"""Runs the three hot ops once at LLaMA-3-8B's sizes on the CUDA device: what a profiler is pointed at.

Only the calls between the profiler's start and stop are to be looked at (`ncu --profile-from-start off`): inputs are
made, and kernels compiled, before.
"""

import bench_mask_match
import bench_masked_linear
import bench_tophash
import torch
from shapes import LLAMA, Token


def main() -> None:
    """Search among 100,000 edits, hash one feature, multiply one token."""
    token = Token(LLAMA, torch.bfloat16, 100_000, "cuda")
    hottest = (bench_mask_match.issue, bench_tophash.issue, bench_masked_linear.issue)
    calls = [next(iter(issue(token).values())) for issue in hottest]

    def hot() -> None:
        for call in calls:
            call()
        torch.cuda.synchronize()

    hot()
    torch.cuda.profiler.start()
    hot()
    torch.cuda.profiler.stop()


if __name__ == "__main__":
    main()
