"""What is remembered of running sequences: said tokens that are taken back, and edits that are deleted meanwhile."""

import copy
import threading

import pytest
import torch
from cache_name import CACHE
from transformers import DynamicCache

from memoir_fast import Edit, Memoir, MemoirConfig
from memoir_fast.errors import MemoirError
from memoir_fast.hf.cache import find_cache

FACTS = ("The capital of France is", "Who wrote the play? The author", "Which animal lives in the desert?")
UNMATCHED = "In which country is the mountain? The river runs"


@pytest.fixture
def coded(taught):
    """A copy of the plain model that routes by codes."""
    model = copy.deepcopy(taught.plain)
    memoir = Memoir.attach(model, taught.tokenizer, MemoirConfig(routing="early", routing_block=1, tau=0.7, k=14))
    memoir.edit(Edit(FACTS[0], "Lyon"))
    return memoir


def _logits(model, ids, **inputs):
    with torch.no_grad():
        return model(input_ids=ids, **inputs).logits


def _steps(model, ids, cache, count):
    """Greedy decoding by hand: `count` tokens after `ids`, one at a time; yields each."""
    for _ in range(count):
        ids = _logits(model, ids, **{CACHE: cache})[:, -1:].argmax(-1)
        yield ids.item()


def _generated(taught, ids, **settings):
    """The state that a generation of 20 tokens leaves on its cache, and how many positions that holds."""
    never = taught.model.config.vocab_size  # transformers 5.10 looks ahead for some end token
    settings = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": never, **settings}
    output = taught.model.generate(ids, **settings, return_dict_in_generate=True)
    cache = find_cache(output)
    return output.sequences, cache.memoir_state, cache.get_seq_length()


@pytest.mark.parametrize("assisted", [{"prompt_lookup_num_tokens": 3}, {"assistant_model": None}])
@pytest.mark.parametrize("text", [FACTS[0] + FACTS[0], UNMATCHED])
def test_tokens_that_are_tried_and_taken_back_leave_no_trace(taught, text, assisted):
    ids = taught.ids(text)
    given = {name: taught.plain if value is None else value for name, value in assisted.items()}
    sequences, plain, length = _generated(taught, ids)
    tried, state, held = _generated(taught, ids, **given)
    assert torch.equal(tried, sequences) and torch.equal(state.route, plain.route)
    assert length == held == state.length == plain.length  # of the last token there is nothing in the cache yet
    assert state.count.item() == plain.count.item() == length
    torch.testing.assert_close(state.mean, plain.mean, rtol=1e-5, atol=1e-6)


def test_said_tokens_count_as_if_they_had_come_one_by_one(taught):
    ids, cache = taught.ids(FACTS[0]), DynamicCache()
    _logits(taught.model, ids, **{CACHE: cache})
    state, x = cache.memoir_state, torch.randn(1, 6, 48)
    other = copy.deepcopy(state)
    state.say(x)
    state.crop(4)
    for token in range(2):
        other.say(x[:, token : token + 1])
    assert torch.equal(state.mean, other.mean) and torch.equal(state.count, other.count)
    assert state.length == other.length == ids.shape[1] + 2


def test_said_tokens_move_with_their_rows(taught):
    cache = DynamicCache()
    _logits(taught.model, taught.ids(FACTS[0]).repeat(2, 1), **{CACHE: cache})
    state, x = cache.memoir_state, torch.randn(2, 3, 48)
    swapped = copy.deepcopy(state)
    state.say(x)
    state.select(torch.tensor([1, 0]))
    state.crop(2)
    swapped.say(x.flip(0)[:, :1])
    assert torch.equal(state.mean, swapped.mean)


def test_crop_takes_the_mean_back_to_the_end_of_the_prompt(taught, reference):
    ids, cache = taught.ids(FACTS[0]), DynamicCache()
    first = _logits(taught.model, ids, **{CACHE: cache})[:, -1:].argmax(-1)
    mean = cache.memoir_state.mean.clone()
    list(_steps(taught.model, first, cache, 4))
    assert not torch.equal(cache.memoir_state.mean, mean) and cache.memoir_state.length == ids.shape[1] + 4
    cache.crop(-4)
    assert cache.get_seq_length() == cache.memoir_state.length == ids.shape[1]
    assert torch.equal(cache.memoir_state.mean, mean) and cache.memoir_state.count.item() == ids.shape[1]
    assert list(_steps(taught.model, first, cache, 3)) == reference(FACTS[0], 0, 4)[-3:]


@pytest.fixture(params=["paper", "early"])
def memoir(request, taught, coded):
    return taught.memoir if request.param == "paper" else coded


def test_a_piece_of_a_part_of_a_prompt_is_not_gone_on_with(taught, memoir):
    """What it says cannot be told any more."""
    model, ids, more, cache = memoir.model, taught.ids(UNMATCHED), taught.ids(FACTS[0]), DynamicCache()
    _logits(model, ids[:, :4], **{CACHE: cache})
    last = _logits(model, ids[:, 4:], **{CACHE: cache})[:, -1:].argmax(-1)
    list(_steps(model, last, cache, 4))
    for where in (ids.shape[1] - 1, 3):
        cache.crop(where - cache.get_seq_length())
        for given in (more, more[:, :1]):
            with pytest.raises(MemoirError, match="cropped in the midst of a part of a prompt"):
                _logits(model, given, **{CACHE: copy.deepcopy(cache)})
            with memoir.disabled():
                _logits(model, given, **{CACHE: copy.deepcopy(cache)})
        with memoir.routed(0):
            _logits(model, more, **{CACHE: copy.deepcopy(cache)})
    cache.crop(-3)  # all of it
    assert memoir.followed(cache) == []
    _logits(model, more[:, :1], **{CACHE: cache})  # a prompt of one token, not one more that is said
    assert cache.memoir_state.prompts[0].length == 1


@pytest.mark.parametrize("rows", [1, 2])
def test_a_crop_to_the_end_of_a_part_follows_what_was_decided_there(taught, memoir, rows):
    """On the first turn, the same words are said again, with the memory's help for as long; another turn is decided."""
    model, other, cache = memoir.model, taught.ids(UNMATCHED).repeat(rows, 1), DynamicCache()
    first, again = taught.ids(FACTS[0]).repeat(rows, 1), taught.ids(" " + FACTS[0]).repeat(rows, 1)
    last = _logits(model, first, **{CACHE: cache})[:, -1:].argmax(-1)
    plain = copy.deepcopy(cache)

    def said(cache):
        found = [last]
        for _ in range(6):
            found.append(_logits(model, found[-1], **{CACHE: cache})[:, -1:].argmax(-1))
        return torch.cat(found, dim=1)

    expected = said(copy.deepcopy(plain))
    for _ in range(3):
        _logits(model, last, **{CACHE: cache})
    _logits(model, other, **{CACHE: cache})
    assert memoir.followed(cache) == [-1] * rows
    cache.reorder_cache(torch.arange(rows).flip(0))
    cache.crop(-3 - other.shape[1])
    assert memoir.followed(cache) == [0] * rows
    assert torch.equal(said(copy.deepcopy(cache)), expected)
    for one in (plain, cache):
        _logits(model, again, **{CACHE: one})
    assert memoir.followed(cache) == memoir.followed(plain)


@pytest.mark.parametrize("goes_on", [False, True])
def test_two_crops_are_as_one(taught, memoir, goes_on):
    """The first ends in the midst of a part, the second where the part before ended, of which the decision is known."""
    model, cache, first, other = memoir.model, DynamicCache(), taught.ids(FACTS[0]), taught.ids(UNMATCHED)
    last = _logits(model, first, **{CACHE: cache})[:, -1:].argmax(-1)
    expected = _logits(model, last, **{CACHE: copy.deepcopy(cache)})
    _logits(model, other, **{CACHE: cache})
    for behind in (2, 0):
        cache.crop(first.shape[1] + behind - cache.get_seq_length())
    if goes_on:
        _logits(model, other, **{CACHE: cache})
        cache.crop(-other.shape[1])
    assert memoir.followed(cache) == [0]
    assert torch.equal(_logits(model, last, **{CACHE: cache}), expected)


def test_a_model_may_be_its_own_assistant(coded, taught):
    """Its guesses are made on a cache that is cropped anywhere; what they are worth, other passes say."""
    ids = taught.ids(FACTS[0])
    settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": coded.model.config.vocab_size}
    greedy = coded.model.generate(ids, **settings)
    for assisted in ({"assistant_model": coded.model}, {"assistant_early_exit": 1}, {"assistant_early_exit": 2}):
        assert torch.equal(coded.model.generate(ids, **settings, **assisted), greedy)
        assert [route.edit_id for route in coded.last_routes] == [0]


def _next(taught, cache, ids):
    """The next token's logits on a copy of a cache, as the memory is now."""
    return _logits(taught.model, ids, **{CACHE: copy.deepcopy(cache)})


@pytest.mark.parametrize("rows", [1, 3])
def test_a_running_sequence_stops_following_a_deleted_edit(taught, rows):
    texts = [FACTS[0], FACTS[1], FACTS[0]][:rows]
    taught.tokenizer.padding_side = "left"
    inputs = taught.tokenizer(texts, return_tensors="pt", padding=True)
    cache = DynamicCache()
    ids = _logits(taught.model, inputs.input_ids, attention_mask=inputs.attention_mask, **{CACHE: cache})
    ids = ids[:, -1:].argmax(-1)
    before = _next(taught, cache, ids)
    with taught.memoir.disabled():
        unedited = _next(taught, cache, ids)
    taught.memoir.delete(0)
    expected = [-1, 1, -1][:rows]
    assert taught.memoir.followed(copy.deepcopy(cache)) == expected
    after = _next(taught, cache, ids)
    for row, route in enumerate(expected):
        assert torch.equal(after[row], (before if route >= 0 else unedited)[row])
        assert not torch.equal(before[row], unedited[row])


def test_another_edit_is_followed_on_though_one_is_deleted(taught):
    cache = DynamicCache()
    first = _logits(taught.model, taught.ids(FACTS[1]), **{CACHE: cache})[:, -1:].argmax(-1)
    said = list(_steps(taught.model, first, copy.deepcopy(cache), 4))
    taught.memoir.delete(0)
    taught.memoir.delete(2)
    assert list(_steps(taught.model, first, cache, 4)) == said and taught.memoir.followed(cache) == [1]


def test_a_generation_under_way_goes_on_and_what_comes_after_it_does_not(taught):
    """`generate` sees the memory that it began with; a cache that it leaves follows the memory as it is then."""
    ids, deleted = taught.ids(FACTS[0]), []
    whole = taught.model.generate(ids, max_new_tokens=8, do_sample=False)

    def delete(*_):
        if not deleted:
            thread = threading.Thread(target=taught.memoir.delete, args=(0,))
            thread.start()
            thread.join()
            deleted.append(0)
        return False

    output = taught.model.generate(
        ids, max_new_tokens=8, do_sample=False, stopping_criteria=[_Once(delete)], return_dict_in_generate=True
    )
    assert deleted and torch.equal(output.sequences, whole)
    assert taught.memoir.followed(find_cache(output)) == [-1]


class _Once:
    """A stopping criterion that looks, and stops nothing."""

    def __init__(self, look):
        self._look = look

    def __call__(self, input_ids, scores, **_):
        self._look()
        return torch.zeros(len(input_ids), dtype=torch.bool)
