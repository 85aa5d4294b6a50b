"""How the router decides in calls of the model by hand: prompts, padding, caches, contexts."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from cache_name import CACHE
from transformers import DynamicCache, StaticCache

from memoir_fast import Memoir, MemoirConfig
from memoir_fast.errors import UnknownEditError
from memoir_fast.hf.partial_forward import layer_input

FACTS = ("The capital of France is", "Who wrote the play? The author", "Which animal lives in the desert?")
UNMATCHED = "In which country is the mountain? The river runs"


def _batch(taught, texts, side):
    taught.tokenizer.padding_side = side
    return dict(taught.tokenizer(list(texts), return_tensors="pt", padding=True))


def _routes(taught):
    return [route.edit_id for route in taught.memoir.last_routes]


def _logits(model, ids, **inputs):
    with torch.no_grad():
        return model(input_ids=ids, **inputs).logits


def _steps(model, ids, cache, count):
    """Greedy decoding by hand: `count` tokens after `ids`, one at a time; yields each."""
    for _ in range(count):
        with torch.no_grad():
            ids = model(input_ids=ids, **{CACHE: cache}).logits[:, -1:].argmax(-1)
        yield ids.item()


def test_an_unmatched_prompt_gives_the_unedited_models_bits(taught):
    ids = taught.ids(UNMATCHED)
    assert torch.equal(_logits(taught.model, ids), _logits(taught.plain, ids))
    assert _routes(taught) == [-1]
    assert not torch.equal(_logits(taught.model, taught.ids(FACTS[0])), _logits(taught.plain, taught.ids(FACTS[0])))
    assert _routes(taught) == [0]


def test_an_unmatched_row_beside_matched_ones_gives_the_unedited_models_bits(taught):
    inputs = _batch(taught, (FACTS[0], UNMATCHED, FACTS[1]), "left")
    found, plain = (
        _logits(model, inputs["input_ids"], attention_mask=inputs["attention_mask"])
        for model in (taught.model, taught.plain)
    )
    assert torch.equal(found[1], plain[1]) and not torch.equal(found[0], plain[0])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_no_route(taught, side, attention):
    taught.model.set_attn_implementation(attention)
    texts = (FACTS[0], UNMATCHED, FACTS[1], FACTS[2])
    inputs = _batch(taught, texts, side)
    logits = _logits(taught.model, inputs["input_ids"], attention_mask=inputs["attention_mask"])
    assert _routes(taught) == [0, -1, 1, 2]
    for row, text in enumerate(texts):
        real = inputs["attention_mask"][row].bool()
        torch.testing.assert_close(logits[row, real], _logits(taught.model, taught.ids(text))[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["bool", "additive"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_masks_of_four_dimensions(taught, side, kind):
    texts = (FACTS[0], UNMATCHED, FACTS[1])
    inputs = _batch(taught, texts, side)
    real, tokens = inputs["attention_mask"].bool(), inputs["input_ids"].shape[1]
    mask = torch.ones(tokens, tokens, dtype=torch.bool).tril() & real[:, None, None, :] & real[:, None, :, None]
    positions = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    if kind != "bool":
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    _logits(taught.model, inputs["input_ids"], attention_mask=mask, position_ids=positions)
    assert _routes(taught) == [0, -1, 1]


def test_a_mask_that_is_one_for_all_rows(taught):
    ids = taught.ids(FACTS[0]).expand(3, -1)
    _logits(taught.model, ids, attention_mask=torch.ones(1, ids.shape[1], dtype=torch.int64).expand(3, -1))
    assert _routes(taught) == [0, 0, 0]
    mask = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()[None, None]
    _logits(taught.model, ids, attention_mask=mask)
    assert _routes(taught) == [0, 0, 0]


def test_rows_do_not_see_their_neighbours(taught):
    texts = [FACTS[0], UNMATCHED, "The sky", FACTS[2], "The language of the island is Greek."]
    taught.memoir.layer.tau = 0.05  # everything matches something, by as many bits as it may
    alone = []
    for text in texts:
        _logits(taught.model, taught.ids(text))
        alone += taught.memoir.last_routes
    inputs = _batch(taught, texts, "right")
    _logits(taught.model, inputs["input_ids"], attention_mask=inputs["attention_mask"])
    assert taught.memoir.last_routes == alone and len({route.overlap for route in alone}) > 1


@pytest.mark.parametrize("static", [False, True])
def test_two_interleaved_generations_by_hand(taught, reference, static):
    jobs = [(FACTS[0], 0), (UNMATCHED, -1), (FACTS[1], 1)]
    caches = [StaticCache(config=taught.model.config, max_cache_len=40) if static else DynamicCache() for _ in jobs]
    running = [_steps(taught.model, taught.ids(text), cache, 6) for (text, _), cache in zip(jobs, caches, strict=True)]
    found = list(zip(*zip(*running, strict=True), strict=True))
    assert [list(tokens) for tokens in found] == [reference(text, route, 6)[-6:] for text, route in jobs]


def test_a_cache_made_by_the_model_carries_the_route(taught):
    with torch.no_grad():
        output = taught.model(taught.ids(FACTS[0]))
    assert type(output[CACHE]).__name__ == "DynamicCache" and isinstance(output[CACHE], DynamicCache)
    assert output[CACHE].memoir_state.route.tolist() == [0]
    with torch.no_grad():
        cache = taught.model(taught.ids(FACTS[1]), return_dict=False)[1]
    assert cache.memoir_state.route.tolist() == [1]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))])
def test_a_copied_cache_goes_on_by_itself(taught, reference, copied):
    ids, cache = taught.ids(FACTS[0]), DynamicCache()
    first = _logits(taught.model, ids, **{CACHE: cache})[:, -1:].argmax(-1)
    other = copied(cache)
    assert type(other) is type(cache) and other.memoir_state.route.tolist() == [0]
    expected = reference(FACTS[0], 0, 4)[-3:]
    assert list(_steps(taught.model, first, cache, 3)) == expected
    assert cache.get_seq_length() == other.get_seq_length() + 3
    assert list(_steps(taught.model, first, other, 3)) == expected
    other.reorder_cache(torch.tensor([0, 0]))
    assert len(cache.memoir_state.route) == 1


@pytest.mark.parametrize("cuts", [(1,), (3,), (2, 4), (1, 2, 3, 4, 5)])
def test_a_prefill_in_chunks_by_hand(taught, cuts):
    """The last part decides, on the running mean; single tokens count as decode steps and decide nothing."""
    ids, cache = taught.ids(FACTS[1]), DynamicCache()
    bounds = [0, *cuts, ids.shape[1]]
    for start, end in zip(bounds[:-1], bounds[1:], strict=True):
        _logits(taught.model, ids[:, start:end], **{CACHE: cache})
    state = cache.memoir_state
    x = layer_input(taught.model, taught.memoir.layer, input_ids=ids)
    torch.testing.assert_close(state.mean, x.mean(dim=1), rtol=1e-5, atol=1e-6)
    assert state.count.item() == state.length == ids.shape[1]
    if bounds[-1] - bounds[-2] > 1:
        assert _routes(taught) == [1] and taught.memoir.last_routes[0].overlap == 1.0


def test_a_padded_prefill_in_chunks(taught):
    inputs = _batch(taught, (UNMATCHED, FACTS[0]), "left")
    padding = int((inputs["attention_mask"][1] == 0).sum())
    assert padding >= 4
    for cut in (1, 3, padding, padding + 1):  # the first part of row 1 may be padding alone
        cache = DynamicCache()
        for part in (slice(0, cut), slice(cut, None)):
            _logits(
                taught.model,
                inputs["input_ids"][:, part],
                attention_mask=inputs["attention_mask"][:, : part.stop],
                **{CACHE: cache},
                position_ids=(inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)[:, part],
            )
        assert _routes(taught) == [-1, 0]


def test_a_new_turn_is_decided_on_the_whole_conversation(taught):
    ids, more = taught.ids(FACTS[0]), taught.ids(" The river runs through the town.")
    whole = torch.cat([ids, more], dim=1)
    edit, cache = taught.add(whole), DynamicCache()
    _logits(taught.model, ids, **{CACHE: cache})
    assert _routes(taught) == [0]
    turn = _logits(taught.model, more, **{CACHE: cache})
    assert _routes(taught) == [edit]
    step = _logits(taught.model, torch.tensor([[9]]), **{CACHE: cache})
    assert _routes(taught) == [edit] and turn.shape[1] == more.shape[1] and step.shape[1] == 1


@pytest.mark.parametrize("static", [False, True])
def test_a_cache_filled_before_the_memory_came(taught, tiny_tokenizer, static):
    """What it holds cannot be hashed: the new tokens decide, once, and every step follows them."""
    old, new = taught.ids(UNMATCHED), taught.ids(FACTS[0])
    cache = StaticCache(config=taught.model.config, max_cache_len=64) if static else DynamicCache()
    taught.memoir.detach()
    _logits(taught.model, old, **{CACHE: cache})
    Memoir.attach(taught.model, tiny_tokenizer, taught.memoir.config)
    whole = torch.cat([old, new], dim=1)
    taught.model.generate(whole, **{CACHE: cache}, max_new_tokens=4, do_sample=False, disable_compile=True)
    assert cache.memoir_state.length == int(cache.get_seq_length())
    assert cache.memoir_state.prompts[0].length == whole.shape[1] and len(cache.memoir_state.prompts) == 1


def test_a_cache_of_another_batch_size_is_refused(taught):
    cache = DynamicCache()
    _logits(taught.model, taught.ids(FACTS[0]), **{CACHE: cache})
    cache.memoir_state.select(torch.tensor([0, 0]))
    with pytest.raises(ValueError, match="the cache holds 2 sequences, the model was called with 1"):
        _logits(taught.model, taught.ids("a"), **{CACHE: cache})


@pytest.mark.parametrize("side", ["left", "right"])
def test_teacher_forcing_hashes_the_prompts_alone(taught, side):
    targets = (" Lyon and more", " of the novel", " a")
    texts = (FACTS[0], FACTS[1], UNMATCHED)
    lengths = [taught.ids(text).shape[1] for text in texts]
    rows = [
        torch.cat([taught.ids(text), taught.ids(target)], dim=1)[0] for text, target in zip(texts, targets, strict=True)
    ]
    width = max(len(row) for row in rows)
    ids, mask = torch.zeros(3, width, dtype=torch.int64), torch.zeros(3, width, dtype=torch.int64)
    for index, row in enumerate(rows):
        part = slice(width - len(row), None) if side == "left" else slice(0, len(row))
        ids[index, part], mask[index, part] = row, 1
    with taught.memoir.prompts(lengths):
        logits = _logits(taught.model, ids, attention_mask=mask)
    assert _routes(taught) == [0, 1, -1]
    with taught.memoir.routed([0, 1, -1]):
        assert torch.equal(_logits(taught.model, ids, attention_mask=mask), logits)
    _logits(taught.model, ids, attention_mask=mask)
    assert taught.memoir.last_routes[0].overlap < 1.0  # by default every token is the prompt
    with taught.memoir.prompts(lengths[0]):
        _logits(taught.model, rows[0][None])
    assert _routes(taught) == [0]


def test_prompt_lengths_that_do_not_fit(taught):
    ids = taught.ids(FACTS[0]).expand(2, -1)
    with taught.memoir.prompts([2, 3, 4]), pytest.raises(ValueError, match="prompts.* 3 values for a batch of 2"):
        _logits(taught.model, ids)
    for lengths in (0, [3, -1]):
        with pytest.raises(ValueError, match="prompt lengths must be at least 1, got"):
            taught.memoir.prompts(lengths)


def test_forced_routes(taught):
    ids = taught.ids(UNMATCHED).expand(3, -1)
    plain = _logits(taught.plain, ids)
    with taught.memoir.routed(1):
        forced = _logits(taught.model, ids)
    assert taught.memoir.last_routes == [(1, None)] * 3 and not torch.equal(forced, plain)
    with taught.memoir.routed([1, -1, 2]):
        mixed = _logits(taught.model, ids)
    assert _routes(taught) == [1, -1, 2]
    assert torch.equal(mixed[0], forced[0]) and torch.equal(mixed[1], plain[1]) and not torch.equal(mixed[2], forced[2])
    with taught.memoir.routed([1, 2]), pytest.raises(ValueError, match=r"routed.* 2 values for a batch of 3"):
        _logits(taught.model, ids)
    for unknown in (3, -2, [0, 7]):
        with pytest.raises(UnknownEditError):
            taught.memoir.routed(unknown)


def test_contexts_nest_and_end_with_exceptions(taught):
    ids = taught.ids(FACTS[0])
    plain, edited = _logits(taught.plain, ids), _logits(taught.model, ids)
    with pytest.raises(RuntimeError, match="stop"), taught.memoir.disabled():
        assert torch.equal(_logits(taught.model, ids), plain) and taught.memoir.last_routes == [(-1, None)]
        raise RuntimeError("stop")
    assert torch.equal(_logits(taught.model, ids), edited)
    with taught.memoir.routed(1):
        with taught.memoir.routed(-1):
            assert torch.equal(_logits(taught.model, ids), plain)
        with taught.memoir.disabled(), taught.memoir.routed(2), taught.memoir.prompts(1):
            assert torch.equal(_logits(taught.model, ids), plain)
        _logits(taught.model, ids)
        assert _routes(taught) == [1]
    assert torch.equal(_logits(taught.model, ids), edited) and _routes(taught) == [0]


def test_disabling_in_mid_generation_rests_the_route_and_does_not_end_it(taught):
    ids, cache = taught.ids(FACTS[0]), DynamicCache()
    _logits(taught.model, ids, **{CACHE: cache})
    token = torch.tensor([[9]])
    other = copy.deepcopy(cache)
    with taught.memoir.disabled():
        rested = _logits(taught.model, token, **{CACHE: cache})
    followed = _logits(taught.model, token, **{CACHE: other})
    assert not torch.equal(rested, followed) and cache.memoir_state.route.tolist() == [0]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("place", [0, 2])
def test_an_exception_inside_of_the_model_leaves_nothing_behind(taught, error, place):
    """Before the edited layer is reached, and behind it."""
    ids, edited = taught.ids(FACTS[0]), _logits(taught.model, taught.ids(FACTS[0]))

    def stop(*_):
        raise error("stop")

    hook = taught.model.model.layers[place].register_forward_hook(stop)
    cache = DynamicCache()
    gone = weakref.ref(cache)
    with pytest.raises(error, match="stop"):
        _logits(taught.model, taught.ids(UNMATCHED).expand(2, -1), **{CACHE: cache})
    hook.remove()
    assert torch.equal(_logits(taught.model, ids), edited) and _routes(taught) == [0]
    x = torch.randn(3, 2, 48)
    assert taught.memoir.layer(x).shape == (3, 2, 32)  # and the layer by itself is not held to the batch that broke off
    del cache
    gc.collect()
    assert gone() is None


def test_gradients_flow_through_matched_rows(taught):
    ids = torch.cat([taught.ids(FACTS[0])[:, :5], taught.ids(UNMATCHED)[:, :5]])
    taught.memoir.layer.tau = 0.05
    with taught.memoir.routed([0, -1]):
        output = taught.model(ids, labels=ids)
        routed = taught.model(ids).logits.detach()
    output.loss.backward()
    embedding = taught.model.model.embed_tokens.weight
    assert embedding.grad.isfinite().all() and embedding.grad.any()
    with taught.memoir.routed([0, -1]):
        torch.testing.assert_close(_logits(taught.model, ids), routed, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(routed[1], _logits(taught.plain, ids)[1], rtol=0, atol=0)

    taught.plain(ids, labels=ids).loss.backward()
    assert not torch.allclose(embedding.grad, taught.plain.model.embed_tokens.weight.grad)
    parameter = dict(taught.model.named_parameters())["model.layers.1.mlp.down_proj.base.weight"]
    assert parameter.grad.any() and not taught.memoir.layer.memory.weight.requires_grad


def test_last_routes_before_any_prompt_and_after_decode_steps(taught):
    assert taught.memoir.last_routes == []
    cache = DynamicCache()
    _logits(taught.model, taught.ids(FACTS[0]), **{CACHE: cache})
    _logits(taught.model, torch.tensor([[9]]), **{CACHE: cache})
    assert taught.memoir.last_routes == [(0, 1.0)]


def test_a_copied_model_has_a_memory_of_its_own(taught):
    other, ids = copy.deepcopy(taught.model), taught.ids(FACTS[0])
    edited = _logits(taught.model, ids)
    settings = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(other.generate(ids, **settings), taught.model.generate(ids, **settings))
    other.get_submodule(taught.memoir.config.layer).memory.weight.zero_()
    assert torch.equal(_logits(taught.model, ids), edited)
    assert torch.equal(_logits(other, ids), _logits(taught.plain, ids))


def test_the_whole_model_compiles(taught, recwarn):
    ids = taught.ids(FACTS[0])
    expected = _logits(taught.model, ids)
    compiled = torch.compile(taught.model, backend="eager")
    torch.testing.assert_close(_logits(compiled, ids), expected)
    assert _routes(taught) == [0] and not [one for one in recwarn if "memoir_fast" in str(one.message)]
    torch._dynamo.reset()


def test_no_sync_with_the_device_in_prefill_and_decode(taught):
    """On the meta device there is nothing to read: any attempt to raises."""
    model = taught.model.to("meta")
    cache = DynamicCache()
    for tokens in (5, 1, 1):
        output = model(torch.zeros(2, tokens, dtype=torch.int64, device="meta"), **{CACHE: cache})
        assert output.logits.shape == (2, tokens, 384)
    assert cache.memoir_state.route.device.type == "meta"


def test_cache_of_a_detached_memory_is_decided_anew(tiny_llama, tiny_tokenizer):
    ids = tiny_tokenizer("The capital of France is", return_tensors="pt").input_ids
    first = Memoir.attach(tiny_llama, tiny_tokenizer, MemoirConfig(tau=0.9, routing="paper"))
    mask, columns = first.hash("The capital of France is")
    first.layer.store.append(mask)
    with torch.no_grad():
        cache = tiny_llama(ids, use_cache=True)[CACHE]
    assert first.last_routes[0].edit_id == 0
    first.detach()

    second = Memoir.attach(tiny_llama, tiny_tokenizer, MemoirConfig(tau=0.9, routing="paper"))
    second.layer.memory.weight.normal_()
    second.layer.store.append(torch.zeros_like(mask))  # matches nothing
    with torch.no_grad():
        after = tiny_llama(ids[:, :1], **{CACHE: copy.deepcopy(cache)}).logits
        with second.disabled():
            assert torch.equal(after, tiny_llama(ids[:, :1], **{CACHE: copy.deepcopy(cache)}).logits)
    second.detach()
