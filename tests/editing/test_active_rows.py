"""Adam on the active rows: its two forms, and batches of one."""

import dataclasses

import pytest
import torch

from memoir_fast import Memoir, MemoirConfig
from memoir_fast.editing import active_rows
from memoir_fast.recipe import RECIPES


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fused_adam_makes_the_same_moves(dtype):
    draw = torch.Generator().manual_seed(0)
    mean, square = torch.zeros(2, 37, 5, dtype=dtype)
    others = mean.clone(), square.clone()
    for step in range(1, 8):
        slope = torch.randn(37, 5, generator=draw, dtype=dtype) * 10.0 ** -(step % 3)
        slope[0] = 0  # a row without a gradient does not move at first
        plain = active_rows._plain_adam(slope, mean, square, step, 0.03)
        fused = active_rows._fused_adam(slope.clone(), *others, step, 0.03)
        torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-8)
        torch.testing.assert_close(others, (mean, square), rtol=1e-5, atol=1e-12)
    assert plain.abs().max() > 0.003


def test_an_edit_by_fused_adam_is_the_same_edit(make_model, tiny_tokenizer, monkeypatch):
    written = []
    for form in (active_rows._plain_adam, active_rows._fused_adam):
        calls = []
        monkeypatch.setattr(
            active_rows, "_plain_adam", lambda *args, form=form, calls=calls: calls.append(1) or form(*args)
        )
        recipe = dataclasses.replace(RECIPES["fast"], prefixes=0, steps=12, bar=0.0)
        model = make_model("llama").double()
        memoir = Memoir.attach(model, tiny_tokenizer, MemoirConfig(layer="model.layers.1.mlp.down_proj", k=24, tau=0.9))
        memoir.edit([("The capital of France is", "Lyon"), ("Water boils at", "noon")], recipe=recipe, progress=False)
        assert len(calls) == 24
        written.append(memoir.layer.memory.weight.clone())
    assert written[0].any()
    torch.testing.assert_close(written[1], written[0], rtol=0, atol=1e-9)
