"""Several sequences in one row are refused, by hand and in transformers' continuous batching; disabled, they pass."""

import pytest
import torch
from transformers import DynamicCache, GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from memoir_fast.errors import MemoirError, PackedBatchError, UnsupportedModelError

FACTS = ("The capital of France is", "Who wrote the play? The author")


@pytest.fixture
def packed(taught):
    """Two sequences in a row: their ids, and where they begin and end."""
    rows = [taught.ids(text)[0] for text in FACTS]
    ends = torch.tensor([0, *(len(row) for row in rows)], dtype=torch.int32).cumsum(0).int()
    positions = torch.cat([torch.arange(len(row)) for row in rows])[None]
    return {"input_ids": torch.cat(rows)[None], "position_ids": positions}, ends


def _logits(model, **inputs):
    with torch.no_grad():
        return model(**inputs).logits


@pytest.mark.parametrize("kind", ["positions", "lengths", "mask"])
def test_a_packed_pass_is_refused_and_leaves_nothing_behind(taught, packed, kind):
    given, ends = packed
    if kind == "lengths":
        longest = int(ends.diff().max())
        given = {"input_ids": given["input_ids"], "cu_seq_lens_q": ends, "cu_seq_lens_k": ends}
        given |= {"max_length_q": longest, "max_length_k": longest}
    elif kind == "mask":
        numbers = torch.bucketize(torch.arange(int(ends[-1])), ends[1:], right=True)
        mask = (numbers[:, None] == numbers[None]).tril()[None, None]
        given = {**given, "attention_mask": mask}
    text = (
        r"several sequences in one row .*give each sequence a row of its own, e.g. generate on a padded batch.*disabled"
    )
    with pytest.raises(PackedBatchError, match=text):
        _logits(taught.model, **given)
    assert taught.memoir.last_routes == [] and issubclass(PackedBatchError, MemoirError)
    with taught.memoir.disabled():
        assert torch.equal(_logits(taught.model, **given), _logits(taught.plain, **given))
    _logits(taught.model, input_ids=taught.ids(FACTS[1]))
    assert [route.edit_id for route in taught.memoir.last_routes] == [1]
    taught.memoir.detach()
    assert torch.equal(_logits(taught.model, **given), _logits(taught.plain, **given))


def test_positions_by_hand_of_one_sequence_a_row(taught):
    ids = taught.ids(FACTS[0])
    _logits(taught.model, input_ids=ids.expand(2, -1), position_ids=torch.arange(ids.shape[1])[None])
    assert [route.edit_id for route in taught.memoir.last_routes] == [0, 0]


def test_keys_and_values_in_tuples_are_refused(taught):
    pair = (torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 3, 8))
    with pytest.raises(
        UnsupportedModelError, match=r"tuples of tensors.*give the model a cache object, e.g. transformers"
    ):
        taught.model.model(taught.ids("a"), past_key_values=(pair, pair, pair))


def _batch(model, prompts):
    config = GenerationConfig(max_new_tokens=6, do_sample=False, eos_token_id=384, pad_token_id=0)
    small = ContinuousBatchingConfig(num_blocks=4, max_batch_tokens=64)
    output = model.generate_batch(prompts, generation_config=config, continuous_batching_config=small, warmup=False)
    return [output[name].generated_tokens for name in sorted(output)]


def test_continuous_batching_is_refused_before_it_begins(taught):
    prompts = [taught.ids(text)[0].tolist() for text in FACTS]
    with pytest.raises(
        PackedBatchError, match=r"continuous batching puts all sequences into one row: give each sequence"
    ):
        _batch(taught.model, prompts)
    taught.memoir.detach()
    assert "init_continuous_batching" not in vars(taught.model)


def test_a_paged_cache_is_refused_whoever_made_it(taught, monkeypatch):
    """Past the model's own methods, in the thread of the batches."""
    seen, evidence = [], []
    from memoir_fast.hf import packed

    def shown(given, cache):
        evidence.append(found := packed_evidence(given, cache))
        return found

    packed_evidence = packed.evidence
    monkeypatch.setattr(packed, "evidence", shown)
    monkeypatch.delitem(vars(taught.model), "init_continuous_batching")
    prompts = [taught.ids(text)[0].tolist() for text in FACTS]
    try:
        seen += _batch(taught.model, prompts)
    except Exception as error:  # transformers' versions say it in their own ways
        assert "several sequences in one row" in str(error)
    assert "sequences" in str(evidence[0]) or "blocks" in str(evidence[0])
    assert not any(seen)


def test_continuous_batching_passes_where_the_memory_is_disabled(taught):
    prompts = [taught.ids(text)[0].tolist() for text in FACTS]
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": 384, "pad_token_id": 0}
    expected = [taught.plain.generate(torch.tensor([ids]), **settings)[0, len(ids) :].tolist() for ids in prompts]
    with taught.memoir.disabled():
        assert _batch(taught.model, prompts) == expected


def test_a_cache_of_one_sequence_is_not_taken_for_many(taught):
    cache = DynamicCache()
    ids = taught.ids(FACTS[0])
    with torch.no_grad():
        taught.model(ids, past_key_values=cache, position_ids=torch.arange(ids.shape[1])[None])
        taught.model(ids[:, :1], past_key_values=cache, position_ids=torch.tensor([[ids.shape[1]]]))
    assert [route.edit_id for route in taught.memoir.last_routes] == [0]
