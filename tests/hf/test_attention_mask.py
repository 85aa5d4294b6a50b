"""Which tokens are no padding, from every form of mask."""

import torch

from memoir_fast.hf.attention_mask import real_tokens

CPU = torch.device("cpu")


def test_a_mask_per_kind_of_attention():
    full = torch.tensor([[1, 1, 1], [0, 1, 1]])
    assert torch.equal(real_tokens({"sliding_attention": None, "full_attention": full}, 0, 2, 3, CPU), full.bool())
    assert torch.equal(real_tokens({"sliding_attention": full}, 0, 2, 3, CPU), full.bool())
    assert real_tokens({}, 0, 2, 3, CPU).all() and real_tokens(None, 0, 2, 3, CPU).all()
