"""A forward pass with several sequences in one row is recognised and taken apart, and no other is taken for one."""

from types import SimpleNamespace

import pytest
import torch
from transformers import DynamicCache

from memoir_fast.errors import PackedBatchError
from memoir_fast.hf.packed import evidence, spans

IDS = torch.zeros(1, 6, dtype=torch.int64)
TWO = torch.tensor([[0, 1, 2, 0, 1, 2]])
ONE = torch.arange(6)[None]


class Paged:
    def update(self, keys, values, layer_idx): ...

    def free_blocks(self, request): ...


def filled(length):
    cache = DynamicCache()
    cache.update(torch.zeros(1, 1, length, 4), torch.zeros(1, 1, length, 4), 0)
    return cache


def blocks(*lengths, causal=True):
    """A mask bool [1, 1, S, S] of sequences of these lengths in one row."""
    numbers = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    mask = numbers[:, None] == numbers[None]
    return (mask.tril() if causal else mask)[None, None]


def additive(mask, dtype=torch.float32):
    return torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ({"position_ids": TWO}, "position_ids start again"),
        ({"position_ids": torch.tensor([[0, 1, 2, 3, 0, 1], [0, 1, 2, 3, 4, 5]])}, "position_ids start again"),
        ({"position_ids": torch.zeros_like(TWO)}, "position_ids start again"),  # sequences of one token
        ({"position_ids": TWO, "attention_mask": torch.ones(1, 6)}, "position_ids start again"),
        ({"position_ids": TWO.expand(4, 1, 6)}, "position_ids start again"),  # of text and images, as Qwen2-VL has it
        ({"cu_seq_lens_q": torch.tensor([0, 3, 6])}, "cu_seq_lens_q tells where"),
        ({"cu_seqlens": torch.tensor([0, 3, 6])}, "cu_seqlens tells where"),
        ({"cu_seq_lens_k": {"full_attention": torch.tensor([0, 3, 6])}}, "cu_seq_lens_k tells where"),
        ({"seq_idx": torch.tensor([[0, 0, 1, 1, 1, 1]], dtype=torch.int32)}, "seq_idx numbers several"),
        ({"whatever": Paged()}, "whatever is a Paged, whose blocks belong to many sequences"),
        ({"attention_mask": blocks(3, 3)}, "attention_mask parts a row"),
        ({"attention_mask": blocks(1, 1, 4, causal=False)}, "attention_mask parts a row"),
        ({"attention_mask": blocks(3, 3).int()}, "attention_mask parts a row"),
        ({"attention_mask": additive(blocks(2, 4))}, "attention_mask parts a row"),
        ({"attention_mask": additive(blocks(2, 4), torch.bfloat16)}, "attention_mask parts a row"),
        ({"attention_mask": {"full_attention": blocks(2, 4)}}, "attention_mask parts a row"),
        ({"attention_mask": SimpleNamespace(kv_num_blocks=None)}, "attention_mask is a SimpleNamespace, in which"),
    ],
)
def test_packed(given, shown):
    assert shown in evidence({"input_ids": IDS, **given}, None)


def test_blocks_behind_a_cache():
    mask = torch.cat([torch.ones(1, 1, 6, 3, dtype=torch.bool), blocks(3, 3)], dim=3)
    assert evidence({"attention_mask": mask}, filled(3)) is None  # all look at what the cache holds
    mask[..., 3:, :3] = False
    assert evidence({"attention_mask": mask}, filled(3))


@pytest.mark.parametrize(
    ("given", "cache"),
    [
        ({}, None),
        ({"position_ids": ONE}, None),
        ({"position_ids": ONE + 4}, filled(4)),
        ({"position_ids": torch.tensor([[7]])}, filled(7)),
        ({"position_ids": ONE[:, :3].expand(3, 1, 3)}, None),  # a position for time, height and width each
        ({"cu_seq_lens_q": torch.tensor([0, 6]), "max_length_q": 6}, None),
        ({"cu_seq_lens_q": None, "use_cache": True, "logits_to_keep": 1}, None),
        ({"seq_idx": torch.zeros(1, 6, dtype=torch.int32)}, None),
        ({"attention_mask": torch.ones(1, 6)}, None),
        ({"attention_mask": {"full_attention": None}}, None),
        ({"attention_mask": blocks(6)}, None),
        ({"attention_mask": blocks(6, causal=False)}, None),
        ({"attention_mask": blocks(6) & blocks(6).triu(-2)}, None),  # a window of three tokens
        ({"attention_mask": blocks(6)[:, :, -1:]}, filled(5)),
        ({"cache": DynamicCache(), "options": {"a": 1}, "names": {"b"}}, None),
    ],
)
def test_not_packed(given, cache):
    assert evidence({"input_ids": IDS, **given}, cache) is None


@pytest.mark.parametrize("clamp", [True, False])
@pytest.mark.parametrize("side", ["left", "right"])
def test_positions_of_padding_are_not_looked_at(side, clamp):
    mask = torch.tensor([[0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    mask = mask.flip(1) if side == "right" else mask
    positions = mask.cumsum(1) - 1
    positions = positions.clamp(min=0) if clamp else positions.masked_fill(mask == 0, 1)
    square = torch.ones(6, 6, dtype=torch.bool).tril() & mask.bool()[:, None, None, :] & mask.bool()[:, None, :, None]
    for one in (mask, square, additive(square)):
        assert evidence({"attention_mask": one, "position_ids": positions}, None) is None


@pytest.mark.parametrize("size", [3, 17, 40])
def test_any_split_is_found_and_any_whole_is_not(size):
    for split in range(1, size):
        assert evidence({"attention_mask": blocks(split, size - split)}, None)
        positions = torch.cat([torch.arange(split), torch.arange(size - split)])[None]
        assert evidence({"position_ids": positions}, None)
    for window in range(2, size):
        assert evidence({"attention_mask": blocks(size).triu(1 - window)}, None) is None


def test_nothing_is_read_where_there_is_nothing_to_read():
    """On the meta device any attempt to read raises."""
    given = {"position_ids": TWO, "seq_idx": TWO, "attention_mask": blocks(3, 3)}
    assert evidence({name: value.to("meta") for name, value in given.items()}, None) is None
    assert evidence({"position_ids": TWO.to("meta")}, None) is None


def test_nothing_is_read_in_a_decode_step(monkeypatch):
    def never(*_, **__):
        raise AssertionError("a value was read")

    given = {
        "input_ids": IDS[:, :1],
        "position_ids": TWO[:, :1],
        "attention_mask": torch.ones(1, 7),
        "cache": filled(6),
    }
    for name in ("__bool__", "tolist", "item", "__int__", "__float__"):
        monkeypatch.setattr(torch.Tensor, name, never)
    assert evidence(given, given["cache"]) is None
    assert evidence({**given, "attention_mask": blocks(7)[:, :, -1:]}, given["cache"]) is None


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"position_ids": ONE}, None),
        ({"cu_seq_lens_q": torch.tensor([0, 6])}, None),
        ({"position_ids": TWO}, [(0, 0, 3), (0, 3, 6)]),
        ({"position_ids": TWO + 7}, [(0, 0, 3), (0, 3, 6)]),
        ({"position_ids": torch.tensor([[0, 0, 1, 2, 0, 0]])}, [(0, 0, 1), (0, 1, 4), (0, 4, 5), (0, 5, 6)]),
        ({"position_ids": TWO.expand(4, 1, 6)}, [(0, 0, 3), (0, 3, 6)]),
        ({"position_ids": TWO, "cache": DynamicCache(), "flash": True}, [(0, 0, 3), (0, 3, 6)]),
        ({"position_ids": TWO, "use_cache": True, "flash": True}, [(0, 0, 3), (0, 3, 6)]),
        ({"cu_seq_lens_q": torch.tensor([0, 2, 2, 6]), "flash": True}, [(0, 0, 2), (0, 2, 6)]),
        ({"position_ids": TWO, "cu_seq_lens_k": {"full": torch.tensor([0, 3, 6])}}, [(0, 0, 3), (0, 3, 6)]),
        ({"position_ids": TWO, "seq_idx": (TWO == TWO).cumsum(1) > 3}, [(0, 0, 3), (0, 3, 6)]),
        ({"input_ids": IDS.expand(2, 6), "position_ids": TWO}, [(0, 0, 3), (0, 3, 6), (1, 0, 3), (1, 3, 6)]),
        ({"input_ids": IDS.expand(2, 6), "position_ids": torch.cat([ONE, TWO])}, [(0, 0, 6), (1, 0, 3), (1, 3, 6)]),
    ],
)
def test_where_sequences_lie(given, found):
    given = {"input_ids": IDS, "use_cache": False, **given}
    settings = SimpleNamespace(_attn_implementation="flash_attention_2" if given.pop("flash", False) else "sdpa")
    assert spans(given, given.get("cache"), settings=settings) == found


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"position_ids": TWO, "attention_mask": torch.ones(1, 6)}, "an attention_mask came with them"),
        ({"attention_mask": blocks(3, 3)}, "an attention_mask came with them"),
        ({"position_ids": TWO, "cache": filled(2)}, "the cache holds positions already"),
        ({"position_ids": TWO, "cache": DynamicCache()}, "where the model fills a cache"),
        ({"position_ids": TWO, "use_cache": None}, "where the model fills a cache"),
        ({"cu_seq_lens_q": torch.tensor([0, 3, 6])}, "goes by position_ids, which were not given"),
        ({"cu_seq_lens_q": torch.tensor([0, 2, 4]), "position_ids": TWO}, "there are"),
        (
            {"cu_seq_lens_q": torch.tensor([0, 2, 6]), "position_ids": TWO},
            "otherwise than cu_seq_lens_q",
        ),
        ({"cu_seq_lens_q": torch.tensor([0, 6]), "position_ids": TWO}, "otherwise than cu_seq_lens_q"),
        (
            {"cu_seq_lens_q": torch.tensor([0, 3, 7]), "position_ids": ONE},
            r"cu_seq_lens_q is of \[1, 7\] tokens, there are \[1, 6\]",
        ),
        ({"cu_seq_lens_q": torch.tensor([0, 4, 2, 6]), "position_ids": TWO}, "must count up from 0"),
        ({"cu_seq_lens_q": torch.tensor([0, 3, 6], device="meta"), "position_ids": ONE}, "cannot be read now"),
        ({"whatever": Paged(), "position_ids": IDS[:, :1]}, "nothing tells where"),
    ],
)
def test_what_cannot_be_told_apart_is_refused(given, why):
    given = {"input_ids": IDS, "use_cache": False, **given}
    with pytest.raises(PackedBatchError, match=f"cannot be told apart .*{why}.* a row of its own"):
        spans(given, given.get("cache"))
    with pytest.raises(PackedBatchError, match="goes on with a row as one sequence"):
        spans({"input_ids": IDS, "position_ids": TWO}, None, generating=True)
