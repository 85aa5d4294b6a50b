"""Give any torch model a memory: correct what a small network says of one input, and nothing else.

python examples/own_linear.py
"""

import torch
from torch import nn

from memoir_fast import MemoirLinear

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(16, 256), nn.GELU(), nn.Linear(256, 4)).requires_grad_(False).eval()
inputs = torch.randn(1000, 16)
before = model(inputs)

# The drop-in: k of the layer's 256 inputs belong to each edit.
model[2] = layer = MemoirLinear(model[2], k=32, tau=0.6)

# Inputs unlike any edit give the background mean, which is taken off every feature: what all share tells nothing.
layer.mu.copy_(model[:2](inputs[1:]).mean(dim=0))

wrong, wanted = inputs[:1], torch.tensor([[0.0, 0.0, 5.0, 0.0]])  # what the model shall say of that input
hidden = model[:2](wrong)

# 1. Its hash names the columns that the edit owns, and is what later inputs are compared with.
mask, columns = layer.hash(hidden[:, None])
edit_id = layer.store.append(mask[0])

# 2. The change of these columns, in one step: a^T c moves the output by (a a^T) c.
active = hidden[:, columns[0].long()]
missing = (wanted - layer.base(hidden)) / (active @ active.T)
with layer.changing(page=0):
    layer.memory.update(columns[0], active, missing)

after = model(inputs)
print(f"said of the input:   {before[0].argmax().item()} before, {after[0].argmax().item()} after; wanted 2")
print(f"edit {edit_id}: largest error {(after[0] - wanted).abs().max():.1e}")

matched, _ = layer.match(model[:2](inputs)[:, None])
others = matched != edit_id
print(f"other inputs that match it: {int((~others[1:]).sum())} of {len(inputs) - 1}")
print(f"the rest has the very bits of before: {torch.equal(after[others], before[others])}")

near = model(wrong + 0.01 * torch.randn(1, 16))
print(f"said of one close to it: {near.argmax().item()}")
