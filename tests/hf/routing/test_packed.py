"""Several sequences in one row are each followed by themselves, or refused; disabled, they pass as they are."""

import pytest
import torch
from cache_name import CACHE
from transformers import DataCollatorWithFlattening, DynamicCache, GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from memoir_fast import Edit, Memoir, MemoirConfig
from memoir_fast.errors import MemoirError, PackedBatchError, UnsupportedModelError
from memoir_fast.hf import routing

FACTS = ("The capital of France is", "Who wrote the play? The author")
OTHER = "The river runs through"


@pytest.fixture
def packed(taught):
    """Two sequences in a row: their ids, and where they begin and end."""
    rows = [taught.ids(text)[0] for text in FACTS]
    ends = torch.tensor([0, *(len(row) for row in rows)], dtype=torch.int32).cumsum(0).int()
    return _row(*rows), ends


def _row(*rows):
    """Sequences of ids in one row, told apart by their positions."""
    return {
        "input_ids": torch.cat(rows)[None],
        "position_ids": torch.cat([torch.arange(len(row)) for row in rows])[None],
        "use_cache": False,  # with one, transformers parts no row
    }


def _logits(model, **inputs):
    with torch.no_grad():
        return model(**inputs).logits


def _routes(memoir):
    return [one.edit_id for one in memoir.last_routes]


def _alone(model, rows):
    """The logits of each sequence in a pass of its own, one behind the other."""
    return torch.cat([_logits(model, input_ids=row[None]) for row in rows], dim=1)


@pytest.fixture(params=["paper", "early"])
def memory(request, taught, tiny_tokenizer):
    """The memoir, an unedited model of the same weights, and ids of texts: 1 follows edit 0, 3 follows edit 1."""
    if request.param == "paper":
        memoir = taught.memoir
    else:
        taught.memoir.detach()
        memoir = Memoir.attach(taught.model, tiny_tokenizer, MemoirConfig(routing="early", tau=0.7, k=14))
        memoir.edit([Edit(FACTS[0], "Lyon"), Edit(FACTS[1], "Bob of Rome")], progress=False)
        memoir.layer.memory.weight.normal_()
    texts = [OTHER, FACTS[0], "a", FACTS[1], OTHER]
    return memoir, taught.plain, [taught.ids(text)[0] for text in texts]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_each_sequence_of_a_row_answers_as_alone(memory, attention):
    memoir, plain, rows = memory
    for model in (memoir.model, plain):
        model.set_attn_implementation(attention)
    found = _logits(memoir.model, **_row(*rows))
    assert _routes(memoir) == [-1, 0, -1, 1, -1]
    torch.testing.assert_close(found, _alone(memoir.model, rows))
    unedited = _logits(plain, **_row(*rows))
    lengths = [len(row) for row in rows]
    for logits, base, route in zip(
        found.split(lengths, 1), unedited.split(lengths, 1), [-1, 0, -1, 1, -1], strict=True
    ):
        assert torch.equal(logits, base) == (route == -1)


def test_rows_of_a_batch_may_hold_several_each(memory):
    memoir, _, rows = memory
    first = _row(rows[1], rows[0])
    rest = torch.full((first["input_ids"].shape[1] - len(rows[3]),), 5)
    second = _row(rows[3], rest)
    both = {name: torch.cat([first[name], second[name]]) for name in ("input_ids", "position_ids")}
    found = _logits(memoir.model, **both, use_cache=False)
    assert _routes(memoir) == [0, -1, 1, -1]
    for row, parts in zip(found, ([rows[1], rows[0]], [rows[3], rest]), strict=True):
        torch.testing.assert_close(row[None], _alone(memoir.model, parts))


@pytest.mark.parametrize("kind", ["lengths", "numbers"])
def test_the_ways_of_telling_sequences_apart_agree(taught, packed, kind):
    given, ends = packed
    expected, longest = _logits(taught.model, **given), int(ends.diff().max())
    numbers = torch.bucketize(torch.arange(int(ends[-1])), ends[1:], right=True)[None].int()
    more = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}
    found = _logits(taught.model, **given, **(more if kind == "lengths" else {"seq_idx": numbers}))
    assert _routes(taught.memoir) == [0, 1] and torch.equal(found, expected)


def test_what_is_asked_for_a_batch_is_asked_for_each_sequence(memory):
    memoir, _, rows = memory
    given = _row(*rows)
    with memoir.routed([1, -1, 0, -1, 0]):
        found = _logits(memoir.model, **given)
    assert _routes(memoir) == [1, -1, 0, -1, 0]
    expected = []
    for row, route in zip(rows, [1, -1, 0, -1, 0], strict=True):
        with memoir.routed(route):
            expected.append(_logits(memoir.model, input_ids=row[None]))
    torch.testing.assert_close(found, torch.cat(expected, dim=1))
    with memoir.routed([0, 1]), pytest.raises(ValueError, match="2 values for a batch of 5"):
        _logits(memoir.model, **given)
    longer = [torch.cat([row, rows[4]]) for row in rows]
    with memoir.prompts([len(row) for row in rows]):
        found = _logits(memoir.model, **_row(*longer))
    assert _routes(memoir) == [-1, 0, -1, 1, -1]
    expected = []
    for row, long in zip(rows, longer, strict=True):
        with memoir.prompts(len(row)):
            expected.append(_logits(memoir.model, input_ids=long[None]))
    torch.testing.assert_close(found, torch.cat(expected, dim=1))


def test_banks_of_each_sequence(taught):
    with taught.memoir.layer.changing(rows=True):
        taught.memoir.layer.store.begin_banks()
    taught.memoir.layer.store.bank[1] = taught.memoir.layer.store.bank_numbers.setdefault("acme", 1)
    given = _row(*(taught.ids(FACTS[1])[0] for _ in range(3)))
    with taught.memoir.banks(["acme", None, "globex"]):
        _logits(taught.model, **given)
    assert _routes(taught.memoir) == [1, -1, -1]


def test_a_packed_training_step_is_that_of_each_sequence(memory):
    memoir, _, rows = memory
    batch = DataCollatorWithFlattening()([{"input_ids": row.tolist()} for row in rows if len(row) > 1])
    weights = [memoir.layer.base.weight, memoir.model.model.embed_tokens.weight]
    found = torch.autograd.grad(memoir.model(**batch, use_cache=False).loss, weights)
    assert _routes(memoir) == [-1, 0, 1, -1]
    tokens, total = 0, 0.0
    for row in rows:
        if len(row) > 1:
            loss = memoir.model(input_ids=row[None], labels=row[None]).loss
            tokens, total = tokens + len(row) - 1, total + loss * (len(row) - 1)
    torch.testing.assert_close(found, torch.autograd.grad(total / tokens, weights))


def test_beside_a_cache_a_row_is_refused_and_cannot_be_gone_on_with(taught, packed, monkeypatch):
    given, _ = packed
    del given["use_cache"]
    for more in ({}, {CACHE: DynamicCache()}):
        with pytest.raises(PackedBatchError, match="parts no row: call it with use_cache=False"):
            _logits(taught.model, **given, **more)
    monkeypatch.setattr(taught.model.config, "use_cache", False)
    _logits(taught.model, **given)
    assert _routes(taught.memoir) == [0, 1]
    # in flash attention, which parts them, they may have filled one
    monkeypatch.setattr(routing, "spans", lambda *_: [(0, 0, 6), (0, 6, 14)])
    cache = DynamicCache()
    _logits(taught.model, **given, **{CACHE: cache})
    monkeypatch.undo()
    assert taught.memoir.followed(cache) == []
    step = {"input_ids": given["input_ids"][:, :1], CACHE: cache}
    with pytest.raises(PackedBatchError, match="the cache was filled with several sequences in one row"):
        _logits(taught.model, **step)
    with taught.memoir.disabled():
        _logits(taught.model, **step)


@pytest.mark.parametrize("memory", ["early"], indirect=True)  # by masks, routes are decided where they are used
def test_an_edit_that_goes_between_two_layers_of_a_packed_pass(memory):
    """Each sequence goes on with the memory that it was decided by."""
    memoir, _, rows = memory
    given = _row(*rows)
    expected = _logits(memoir.model, **given)
    inside = memoir.layer.base.register_forward_hook(
        lambda *_: memoir.delete(0) if 0 in memoir.layer.store.live else None
    )
    assert torch.equal(_logits(memoir.model, **given), expected)
    inside.remove()
    _logits(memoir.model, **given)
    assert _routes(memoir) == [-1, -1, -1, 1, -1]


@pytest.mark.parametrize("kind", ["two", "four"])
def test_what_cannot_be_told_apart_is_refused_and_leaves_nothing_behind(taught, packed, kind):
    given, ends = packed
    numbers = torch.bucketize(torch.arange(int(ends[-1])), ends[1:], right=True)
    mask = (numbers[:, None] == numbers[None]).tril()[None, None]
    given = {**given, "attention_mask": mask if kind == "four" else torch.ones_like(given["input_ids"])}
    text = r"several sequences in one row .*cannot be told apart .*give each sequence a row of its own.*disabled"
    with pytest.raises(PackedBatchError, match=text):
        _logits(taught.model, **given)
    assert taught.memoir.last_routes == [] and issubclass(PackedBatchError, MemoirError)
    with taught.memoir.disabled():
        assert torch.equal(_logits(taught.model, **given), _logits(taught.plain, **given))
    _logits(taught.model, input_ids=taught.ids(FACTS[1]))
    assert _routes(taught.memoir) == [1]
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
        taught.model.model(taught.ids("a"), **{CACHE: (pair, pair, pair)})


def _batch(model, prompts):
    config = GenerationConfig(max_new_tokens=6, do_sample=False, eos_token_id=384, pad_token_id=0)
    small = ContinuousBatchingConfig(num_blocks=4, max_batch_tokens=64)
    output = model.generate_batch(prompts, generation_config=config, continuous_batching_config=small, warmup=False)
    return [output[name].generated_tokens for name in sorted(output)]


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


def test_a_cache_of_one_sequence_is_not_taken_for_many(taught):
    cache = DynamicCache()
    ids = taught.ids(FACTS[0])
    with torch.no_grad():
        taught.model(ids, **{CACHE: cache}, position_ids=torch.arange(ids.shape[1])[None])
        taught.model(ids[:, :1], **{CACHE: cache}, position_ids=torch.tensor([[ids.shape[1]]]))
    assert [route.edit_id for route in taught.memoir.last_routes] == [0]
