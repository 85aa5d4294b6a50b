"""Quantised, offloaded and adapted models: docs/support.md, row by row, where the row's package is installed."""

from pathlib import Path

import pytest
import torch
from torch import nn

from memoir_fast import Memoir, MemoirConfig
from memoir_fast.errors import MemoirError
from memoir_fast.io.fingerprint import fingerprint

PAGE = Path(__file__).parents[1] / "docs" / "support.md"
_TABLE = PAGE.read_text().partition("bases, begin -->")[2].partition("Refused with:")[0]
_ROWS = [line.split(" | ")[0][2:] for line in _TABLE.splitlines() if line.endswith(" |")][2:]  # behind the head


@pytest.mark.parametrize("name", _ROWS)
def test_the_page_says_what_is_found(name, tool):
    support, base = tool("support_bases"), tool("bases").BASES[name]
    if base.missing:
        pytest.skip(f"needs the package {base.package}, which is not installed")
    found, page = support.row(name), PAGE.read_text().splitlines()
    assert support.line(found) in page
    assert found.refused is None or support.reason(found) in page


def test_the_page_has_every_row(tool):
    assert tuple(_ROWS) == tuple(tool("bases").BASES)
    told = tool("support_bases").section([], PAGE.read_text())
    assert f"\n{told}\n" in PAGE.read_text(), "rows that are not run are left as they are"


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_weights_that_are_offloaded_later_are_refused(tiny_llama, tiny_tokenizer, tool, where):
    pytest.importorskip("accelerate", reason="needs the package accelerate")
    memoir = Memoir.attach(tiny_llama, tiny_tokenizer, MemoirConfig(check=False))
    ids = torch.tensor([[5, 6, 7]])
    tiny_llama(ids)
    tool("bases").offloaded(where, tiny_llama)
    with pytest.raises(MemoirError, match="offloaded after its memory was put on"):
        tiny_llama(ids)
    memoir.detach()


class _Packed(nn.Parameter):
    """Bytes, and how they are packed."""

    def __deepcopy__(self, memo):
        return _packed(self.data.clone(), self.quant_state)


def _packed(data, state):
    made = _Packed(data, requires_grad=False)
    made.quant_state = state
    return made


class _Repacking(nn.Linear):
    """As bitsandbytes' layer of 4 bits on some CPUs: the first pass packs bytes anew, the state dict unpacks them."""

    def __init__(self):
        super().__init__(4, 2, bias=False)
        self.weight = _packed(torch.arange(4, dtype=torch.uint8)[:, None], "as stored")

    def forward(self, x):
        self.weight = _packed(self.weight.data.flip(0).view(2, 2), "turned")
        return x[..., :2]

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        if self.weight.quant_state == "turned":
            self.weight = _packed(self.weight.data.view(4, 1).flip(0), "as stored")
        super()._save_to_state_dict(destination, prefix, keep_vars)


def test_a_weight_that_is_packed_anew_is_the_same_weight():
    model = nn.Sequential(_Repacking())
    before = fingerprint(model, "0")
    model(torch.zeros(1, 4))
    assert fingerprint(model, "0") == before and before["weight_shape"] == [4, 1]
    assert model[0].weight.quant_state == "turned", "asking does not change the layer"
