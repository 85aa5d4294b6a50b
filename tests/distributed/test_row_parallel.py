"""The parts of a row-parallel layer: their rows here, and whole models on two and four processes of gloo."""

import pytest
import torch

from memoir_fast import Memoir, MemoirConfig
from memoir_fast.distributed.row_parallel import NO_ROW, Part
from memoir_fast.errors import UnsupportedModelError
from memoir_fast.io import checkpoint
from memoir_fast.modules import ResidualMemory
from memoir_fast.modules.part_memory import PartMemory, _without_none


@pytest.mark.slow
def test_models_on_several_processes(tmp_path, tiny_llama, tiny_tokenizer, checks, on_processes):
    own = checks("checks_of_parts")
    tiny_llama.config.num_key_value_heads = 4  # as all heads and the 48 inputs of the edited layer, to be split in four
    torch.manual_seed(0)
    type(tiny_llama)(tiny_llama.config).save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    own.reference(tmp_path)
    for size in on_processes("checks_of_parts", tmp_path):
        for name in ("early", "paper"):
            ours, theirs = (checkpoint.read(tmp_path / one) for one in (name, f"{name}-saved-by-{size}"))
            assert ours.tensors.keys() == theirs.tensors.keys() and ours.edits == theirs.edits
            assert all(torch.equal(value, theirs.tensors[key]) for key, value in ours.tensors.items())
    back = Memoir.from_pretrained(own.load_model(tmp_path, torch.float64), tiny_tokenizer, theirs.folder)
    own.same(own.observed(back), torch.load(tmp_path / "paper.pt", weights_only=False)["before"], 0.0)


@pytest.mark.parametrize("width,size", [(48, 4), (50, 4), (7, 3), (9, 1)])
@pytest.mark.parametrize("k", [1, 5])
def test_summands_of_all_parts_are_the_whole(width, size, k):
    whole = ResidualMemory(width, 6, torch.float64)
    parts = [Part(width, rank, size) for rank in range(size)]
    memories = [PartMemory(part, 6, torch.float64) for part in parts]
    for memory in (whole, *memories):
        memory.open()
    rows, values = torch.arange(2 * width), torch.randn(2 * width, 6)
    for memory in (whole, *memories):
        memory.take(rows, values)
    assert torch.equal(torch.cat([one.page(1) for one in memories]), whole.page(1))
    columns = torch.stack([torch.randperm(width)[:k].sort().values for _ in range(4)]).int()
    page, route = torch.tensor([[0], [1], [1], [0]]).int(), torch.tensor([0, 2, -1, 2, 3]).int()
    x = torch.randn(5, 3, width, dtype=torch.float64, requires_grad=True)
    expected = whole(x, columns + width * page, route)
    found, added = 0, torch.zeros(5, 3, 6, dtype=torch.float64)
    for part, memory in zip(parts, memories, strict=True):
        own, mine = part.rows(columns + width * page, page), x[..., part.first : part.last]
        assert own.shape == (4, min(k, part.inputs))
        found = found + memory(mine, own, route)
        memory.add_(added, mine.detach(), own, route)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(added, expected.detach())
    slope = torch.randn_like(expected)
    (one,), (other,) = (torch.autograd.grad(y, x, slope) for y in (found, expected))
    torch.testing.assert_close(one, other)


def test_rows_of_a_part_are_those_that_devices_take():
    """Behind its rows, ascending and on one page, stand numbers that are rows of none; so does one of no row at all."""
    part = Part(12, 1, 3)
    columns, page = torch.tensor([[0, 4, 6, 11], [0, 1, 2, 8], [4, 5, 6, 7]]).int(), torch.arange(3)[:, None].int()
    rows = part.rows(columns + 12 * page, page)
    assert rows.tolist() == [[0, 2, NO_ROW, NO_ROW], [NO_ROW] * 4, [8, 9, 10, 11]]
    deleted = torch.full((3, 4), -1).int() + 12 * page  # the page before's last row, which is the last process's
    assert (Part(12, 2, 3).rows(deleted, page) == NO_ROW).all()
    assert rows.dtype == torch.int32
    assert _without_none(rows, torch.tensor([2, 1, 0, -1]).int()).tolist() == [2, -1, 0, -1]


def test_more_processes_than_inputs_are_refused():
    with pytest.raises(UnsupportedModelError, match="5 processes are too many for the edited layer's 4 inputs"):
        Part(4, 0, 5)


def test_layers_that_older_releases_split_are_refused(tiny_llama, tiny_tokenizer):
    layer = "model.layers.1.mlp.down_proj"
    tiny_llama.get_submodule(layer)._is_hooked = True  # as their tensor parallelism leaves it, with a plain weight
    with pytest.raises(UnsupportedModelError, match=r"by other means than DTensor; use transformers 5\.24 or later"):
        Memoir.attach(tiny_llama, tiny_tokenizer, MemoirConfig(layer=layer))
