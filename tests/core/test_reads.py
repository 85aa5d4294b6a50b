"""What an edit reads, as it is kept."""

import torch
from torch import nn

from memoir_fast import MemoirLinear
from memoir_fast.core.reads import Reads


def test_they_are_rounded_once_and_copied():
    inputs = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    reads = Reads.of(inputs, True)
    assert torch.equal(reads.inputs, inputs.detach().bfloat16()) and not reads.inputs.requires_grad and reads.stop
    again = Reads.of(reads.inputs, False)
    assert torch.equal(again.inputs, reads.inputs) and not again.stop


def test_they_are_a_tenth_of_the_rows_at_most_or_32_tokens():
    for outputs, dtype, most in ((32, torch.float32, 32), (600, torch.float32, 120), (800, torch.bfloat16, 80)):
        layer = MemoirLinear(nn.Linear(16, outputs, bias=False, dtype=dtype), 4)
        own = 4 * outputs * layer.memory.table.element_size()
        for tokens in (most, most + 1):
            reads = Reads.of(torch.ones(tokens, 4), False)
            assert reads.short(layer) == (tokens == most)
            assert (10 * reads.inputs.nbytes <= own) == (tokens == most) or most == 32
