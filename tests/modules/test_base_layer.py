"""Where a layer's weight is, what dtype a memory beside it has, and where it computes."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from memoir_fast.modules import MemoirLinear
from memoir_fast.modules.base_layer import device_beside, dtype_beside, executed_on, weight_of


class Packed(nn.Module):
    """A layer of quantised weights: sizes, and bytes by a name of its own."""

    def __init__(self, name="qweight", dtype=torch.uint8):
        super().__init__()
        self.in_features, self.out_features = 64, 8
        self.register_buffer("scale", torch.ones(8, 1))
        self.register_buffer(name, torch.zeros(256).to(dtype))

    def forward(self, x):
        return x[..., :8]


def test_the_weight_is_the_largest_tensor_where_none_has_the_name():
    linear, packed = nn.Linear(64, 8), Packed()
    assert weight_of(linear) is linear.weight
    assert weight_of(packed) is packed.qweight
    with pytest.raises(
        TypeError,
        match="must hold a weight, a torch.nn.modules.linear.Identity holds no tensor: quantise weights alone",
    ):
        weight_of(nn.Identity())


@pytest.mark.parametrize(
    ("layer", "dtype"),
    [
        (nn.Linear(64, 8, dtype=torch.bfloat16), torch.bfloat16),
        (nn.Linear(64, 8, dtype=torch.float64), torch.float64),
        (Packed(), torch.float32),
        (Packed("weight", torch.float8_e4m3fn), torch.float32),
    ],
)
def test_the_memory_is_of_floats(layer, dtype):
    assert dtype_beside(layer) == dtype
    made = MemoirLinear(layer, k=8)
    assert made.memory.table.dtype == dtype and made.memory.table.device.type == "cpu"
    x = torch.randn(2, 3, 64, dtype=dtype)
    assert torch.equal(made(x), layer(x))


def test_weights_that_are_brought_where_they_are_needed():
    linear = nn.Linear(64, 8, device="meta")
    assert device_beside(linear).type == "meta"
    linear._hf_hook = SimpleNamespace(execution_device="cpu")
    assert device_beside(linear) == torch.device("cpu")
    assert MemoirLinear(linear, k=8).memory.table.device.type == "cpu"
    linear._hf_hook = SimpleNamespace(hooks=[SimpleNamespace(), SimpleNamespace(execution_device="cpu")])
    assert executed_on(nn.Sequential(linear), torch.device("meta")).type == "cpu"
    assert device_beside(nn.Linear(64, 8)).type == "cpu"
