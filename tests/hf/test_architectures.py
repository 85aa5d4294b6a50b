"""Which models a memory works on: docs/support.md, row by row, and some that are followed if their layer is named."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers

from memoir_fast import Memoir, MemoirConfig
from memoir_fast.errors import UnsupportedModelError
from memoir_fast.hf.presets import PRESETS

PAGE = Path(__file__).parents[2] / "docs" / "support.md"
_ROWS = re.findall(r"^\| ([^|]+) \| `\w+` \|", PAGE.read_text(), re.MULTILINE)
_PINNED = re.findall(r"^transformers==(\S+)", (PAGE.parents[1] / "constraints.txt").read_text(), re.MULTILINE)
_SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
_FOLLOWED = {
    "bloom": ({"hidden_size": 32, "n_head": 4}, "transformer.h.1.mlp.dense_4h_to_h"),
    "gpt_oss": (
        {**_SIZES, "head_dim": 8, "num_local_experts": 4, "sliding_window": 3},
        "model.layers.1.self_attn.o_proj",
    ),
    "lfm2": ({**_SIZES, "layer_types": ["conv", "full_attention", "conv"]}, "model.layers.1.feed_forward.w2"),
    "openai-gpt": ({"n_embd": 32, "n_head": 4}, "transformer.h.1.mlp.c_proj"),  # without a cache
}
_REFUSED = {
    "rwkv": (
        {"hidden_size": 32, "attention_hidden_size": 32, "intermediate_size": 48, "context_length": 64},
        "rwkv.blocks.1.feed_forward.value",
        "no cache was found in its output, with use_cache=True",
    ),
}


def _cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def _memoir(kind, settings, layer):
    config = transformers.AutoConfig.for_model(
        kind, vocab_size=384, num_hidden_layers=3, pad_token_id=0, bos_token_id=None, eos_token_id=1, **settings
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    bytes_alone = lambda text, **_: SimpleNamespace(input_ids=[2 + one for one in text[:12].encode()])  # noqa: E731
    return Memoir(model, bytes_alone, MemoirConfig(routing="paper", layer=layer, k=16))


@pytest.mark.parametrize("kind", _FOLLOWED)
def test_followed(kind):
    assert _memoir(kind, *_FOLLOWED[kind]).last_routes == []


@pytest.mark.parametrize("kind", _REFUSED)
def test_refused(kind):
    settings, layer, shown = _REFUSED[kind]
    with pytest.raises(UnsupportedModelError, match=shown):
        _memoir(kind, settings, layer)


@pytest.mark.parametrize("name", _ROWS)
def test_the_page_says_what_is_found(name, tool):
    """Where another release of transformers has no such cache or beams for a model, that cell is "-"."""
    support = tool("support")
    found, lines = support.row(name), PAGE.read_text().splitlines()
    (told,) = [_cells(line) for line in lines if line.startswith(f"| {name} | `")]
    cells = _cells(support.line(found))
    without = {"-"} if transformers.__version__ not in _PINNED else set()
    differ = [(own, one) for own, one in zip(cells, told, strict=False) if own not in {one, *without}]
    assert not differ and len(cells) >= len(told) - 1
    assert found.refused is None or support.reason(found) in lines


@pytest.mark.slow
def test_a_compiled_pass_of_another_architecture_is_as_the_page_says(tool):
    support = tool("support")
    assert support.line(support.row("GPT-2", compiled=True)) in PAGE.read_text().splitlines()


def test_the_page_has_every_row(tool):
    support = tool("support")
    assert tuple(_ROWS) == support.ROWS
    table, _, told = PAGE.read_text().partition(support.END)[0].partition("Refused with:")
    assert told.count("\n- ") == table.count("| refused |") > 0
    assert {one.kind for one in tool("architectures").ARCHITECTURES.values()} >= set(PRESETS)
