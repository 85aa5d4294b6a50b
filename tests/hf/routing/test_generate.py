"""`model.generate` on a model with a memory, against step-by-step full passes along known routes."""

import threading

import pytest
import torch
from cache_name import CACHE
from transformers import GenerationConfig

from memoir_fast.errors import UnsupportedModelError

FACTS = ("The capital of France is", "Who wrote the play? The author", "Which animal lives in the desert?")
UNMATCHED = "In which country is the mountain? The river runs"
NEW = 8


def _batch(taught, texts, side):
    taught.tokenizer.padding_side = side
    return dict(taught.tokenizer(list(texts), return_tensors="pt", padding=True))


def _new(output, inputs, pad=0):
    """Generated tokens of each row."""
    return [row[inputs["input_ids"].shape[1] :].tolist() for row in output]


def _routes(taught):
    return [route.edit_id for route in taught.memoir.last_routes]


@pytest.fixture(autouse=True)
def endless(taught):
    """No generation ends early, so that lengths are known."""
    for model in (taught.model, taught.plain):
        model.generation_config.eos_token_id = None


@pytest.mark.parametrize("settings", [{}, {"cache_implementation": "static"}, {"use_cache": False}])
@pytest.mark.parametrize(("text", "route"), [(FACTS[0], 0), (FACTS[2], 2), (UNMATCHED, -1)])
def test_greedy_equals_full_passes(taught, reference, text, route, settings):
    output = taught.model.generate(taught.ids(text), max_new_tokens=NEW, do_sample=False, **settings)
    (last,) = taught.memoir.last_routes
    assert last.edit_id == route and (last.overlap == 1.0) == (route != -1)
    assert output[0].tolist() == reference(text, route, NEW)
    plain = taught.plain.generate(taught.ids(text), max_new_tokens=NEW, do_sample=False)
    assert torch.equal(output, plain) == (route == -1)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("settings", [{}, {"cache_implementation": "static"}])
def test_rows_of_a_left_padded_batch_follow_different_edits_or_none(taught, reference, settings, attention):
    taught.model.set_attn_implementation(attention)
    texts = (UNMATCHED, FACTS[1], FACTS[0], FACTS[1])
    inputs = _batch(taught, texts, "left")
    assert (inputs["attention_mask"][2] == 0).any()
    output = taught.model.generate(**inputs, max_new_tokens=NEW, do_sample=False, **settings)
    assert _routes(taught) == [-1, 1, 0, 1]
    expected = [reference(text, route, NEW)[-NEW:] for text, route in zip(texts, (-1, 1, 0, 1), strict=True)]
    assert _new(output, inputs) == expected


def test_sampling_with_a_seed_and_several_sequences_per_prompt(taught):
    inputs = _batch(taught, (UNMATCHED, FACTS[0]), "left")
    settings = {"max_new_tokens": NEW, "do_sample": True, "num_return_sequences": 3, "top_k": 5}

    def sample(model):
        torch.manual_seed(7)
        return model.generate(**inputs, **settings)

    output, plain = sample(taught.model), sample(taught.plain)
    assert _routes(taught) == [-1] * 3 + [0] * 3
    with taught.memoir.routed([-1] * 3 + [0] * 3):
        assert torch.equal(sample(taught.model), output)
    with taught.memoir.disabled():
        assert torch.equal(sample(taught.model), plain)
    assert not torch.equal(output, plain)


@pytest.mark.parametrize("returned", [1, 3])
def test_beams_keep_their_rows_route(taught, returned):
    """The rows of one prompt are each other's beams: the same with a cache, which reorders, and without one."""
    inputs = _batch(taught, (UNMATCHED, FACTS[0], FACTS[1]), "left")
    settings = {"max_new_tokens": NEW, "do_sample": False, "num_beams": 3, "num_return_sequences": returned}
    output = taught.model.generate(**inputs, **settings)
    assert _routes(taught) == [-1] * 3 + [0] * 3 + [1] * 3
    with taught.memoir.routed([-1] * 3 + [0] * 3 + [1] * 3):
        assert torch.equal(taught.model.generate(**inputs, **settings, use_cache=False), output)
    plain = taught.plain.generate(**inputs, **settings)
    assert torch.equal(plain[:returned], output[:returned]) and not torch.equal(plain[returned:], output[returned:])


def test_a_reordered_cache_reorders_the_routes(taught):
    inputs = _batch(taught, (UNMATCHED, FACTS[0], FACTS[1]), "left")
    with torch.no_grad():
        cache = taught.model(**inputs)[CACHE]
    cache.reorder_cache(torch.tensor([2, 0, 2]))
    assert cache.memoir_state.route.tolist() == [1, -1, 1] and len(cache.memoir_state.mean) == 3
    cache.batch_repeat_interleave(2)
    assert cache.memoir_state.route.tolist() == [1, 1, -1, -1, 1, 1]
    cache.batch_select_indices(torch.tensor([2, 0]))
    assert cache.memoir_state.route.tolist() == [-1, 1]
    mask = torch.cat([inputs["attention_mask"][[0, 2]], torch.ones(2, 1, dtype=torch.int64)], dim=1)
    token = torch.tensor([[9], [9]])
    with torch.no_grad():
        step = taught.model(token, attention_mask=mask, **{CACHE: cache}).logits[:, -1]
        whole = torch.cat([inputs["input_ids"][[0, 2]], token], dim=1)
        with taught.memoir.routed([-1, 1]):
            expected = taught.model(whole, attention_mask=mask, use_cache=False).logits[:, -1]
    torch.testing.assert_close(step, expected)


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_prefill_in_chunks_decides_on_the_whole_prompt(taught, chunk):
    inputs = _batch(taught, (UNMATCHED, FACTS[1], FACTS[0]), "left")
    whole = taught.model.generate(**inputs, max_new_tokens=NEW, do_sample=False)
    output = taught.model.generate(**inputs, max_new_tokens=NEW, do_sample=False, prefill_chunk_size=chunk)
    assert _routes(taught) == [-1, 1, 0]
    # earlier parts go through later blocks before the route is known, so only the unrouted row is the same in full
    assert torch.equal(output[0], whole[0])


@pytest.mark.parametrize("text", [FACTS[0], FACTS[1], UNMATCHED])
def test_prompt_lookup_gives_what_greedy_gives(taught, text):
    ids, never = taught.ids(text), taught.model.config.vocab_size  # transformers 5.10 looks ahead for some end token
    greedy = taught.model.generate(ids, max_new_tokens=20, do_sample=False)
    route = _routes(taught)
    settings = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": never}
    output = taught.model.generate(ids, **settings, prompt_lookup_num_tokens=3)
    assert torch.equal(output, greedy) and _routes(taught) == route


def test_an_assistant_model_proposes_and_the_memory_decides(taught):
    ids = taught.ids(FACTS[0])
    greedy = taught.model.generate(ids, max_new_tokens=12, do_sample=False)
    output = taught.model.generate(ids, max_new_tokens=12, do_sample=False, assistant_model=taught.plain)
    assert torch.equal(output, greedy) and _routes(taught) == [0]


@pytest.mark.parametrize("text", [FACTS[0], UNMATCHED])
def test_input_embeddings(taught, text):
    ids = taught.ids(text)
    embedded = taught.model.get_input_embeddings()(ids).detach()
    output = taught.model.generate(inputs_embeds=embedded, max_new_tokens=NEW, do_sample=False)
    expected = taught.model.generate(ids, max_new_tokens=NEW, do_sample=False)
    assert torch.equal(output, expected[:, ids.shape[1] :])


@pytest.mark.parametrize("grad_mode", [torch.no_grad, torch.inference_mode])
def test_grad_modes(taught, reference, grad_mode):
    with grad_mode():
        output = taught.model.generate(taught.ids(FACTS[0]), max_new_tokens=NEW, do_sample=False)
    assert output[0].tolist() == reference(FACTS[0], 0, NEW)


def test_a_cache_from_inference_mode_goes_on_outside_of_it(taught):
    ids = taught.ids(FACTS[0])
    with torch.inference_mode():
        cache = taught.model(ids)[CACHE]
    token = torch.tensor([[9]])
    with torch.no_grad():
        step = taught.model(token, **{CACHE: cache}).logits[:, -1]
        with taught.memoir.routed(0):
            expected = taught.model(torch.cat([ids, token], dim=1)).logits[:, -1]
    torch.testing.assert_close(step, expected)


def test_edits_made_between_two_generations(taught, reference):
    text = UNMATCHED
    before = taught.model.generate(taught.ids(text), max_new_tokens=NEW, do_sample=False)
    edit = taught.add(text)
    after = taught.model.generate(taught.ids(text), max_new_tokens=NEW, do_sample=False)
    assert after[0].tolist() == reference(text, edit, NEW) and not torch.equal(before, after)
    taught.memoir.delete(edit)
    assert torch.equal(taught.model.generate(taught.ids(text), max_new_tokens=NEW, do_sample=False), before)


def test_a_new_turn_on_a_cache_is_decided_on_the_whole_conversation(taught):
    from transformers import DynamicCache

    cache = DynamicCache(config=taught.model.config)
    settings = {"max_new_tokens": 4, "do_sample": False, CACHE: cache}
    first = taught.model.generate(taught.ids(FACTS[0]), **settings)
    assert _routes(taught) == [0]
    turn = torch.cat([first, taught.ids(" Who wrote the play?")], dim=1)
    edit = taught.add(turn)
    second = taught.model.generate(turn, **settings)
    assert _routes(taught) == [edit] and second.shape[1] == turn.shape[1] + 4
    assert torch.equal(taught.model.generate(taught.ids(FACTS[0]), max_new_tokens=4, do_sample=False), first)


@pytest.mark.parametrize("static", [False, True])
def test_a_prompt_may_be_given_without_what_the_cache_holds(taught, static):
    """As transformers allows: the new ids alone, and the attention mask of all."""
    from transformers import DynamicCache, StaticCache

    before, new = taught.ids("The river runs through the old town. " * 2), taught.ids(FACTS[0])
    whole = torch.cat([before, new], dim=1)
    edit = taught.add(whole)
    settings = {"max_new_tokens": NEW, "do_sample": False, "attention_mask": torch.ones_like(whole)}
    found = []
    for ids in (whole, new):
        cache = StaticCache(taught.model.config, 128) if static else DynamicCache(config=taught.model.config)
        with torch.no_grad():
            taught.model(before, **{CACHE: cache})
        output = taught.model.generate(ids, **settings, **{CACHE: cache}, disable_compile=True)
        assert _routes(taught) == [edit]
        found.append(output[0, -NEW:].tolist())
    assert found[0] == found[1] and before.shape[1] > new.shape[1]


def test_a_static_cache_reset_and_used_again(taught, reference):
    from transformers import StaticCache

    cache = StaticCache(config=taught.model.config, max_cache_len=64)
    for text, route in ((FACTS[0], 0), (UNMATCHED, -1), (FACTS[1], 1)):
        output = taught.model.generate(
            taught.ids(text), **{CACHE: cache}, max_new_tokens=NEW, do_sample=False, disable_compile=True
        )
        assert output[0].tolist() == reference(text, route, NEW)
        cache.reset()
        assert cache.memoir_state is None


def test_two_threads_generate_at_once_on_one_model(taught, reference):
    jobs = [(FACTS[0], 0), (UNMATCHED, -1), (FACTS[1], 1)]
    expected = [reference(text, route, NEW) for text, route in jobs]
    start, found = threading.Barrier(len(jobs)), {}

    def work(index, text):
        start.wait()
        found[index] = [
            taught.model.generate(taught.ids(text), max_new_tokens=NEW, do_sample=False)[0].tolist() for _ in range(3)
        ]

    threads = [threading.Thread(target=work, args=(index, text)) for index, (text, _) in enumerate(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[index] for index in range(len(jobs))] == [[one] * 3 for one in expected]


def test_orders_hold_in_their_own_thread_alone(taught):
    seen = {}

    def work():
        taught.model.generate(taught.ids(FACTS[0]), max_new_tokens=2, do_sample=False)
        seen["routes"] = _routes(taught)

    with taught.memoir.disabled():
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert seen["routes"] == [0]


def test_generate_keeps_its_signature_and_takes_no_input_at_all(taught):
    import inspect

    assert inspect.signature(taught.model.generate) == inspect.signature(taught.plain.generate)
    taught.model.generation_config.bos_token_id = taught.plain.generation_config.bos_token_id = 5
    with taught.memoir.disabled():
        output = taught.model.generate(max_new_tokens=4, do_sample=False)
    assert torch.equal(output, taught.plain.generate(max_new_tokens=4, do_sample=False)) and output.shape == (1, 5)
    assert taught.model.generate(max_new_tokens=4, do_sample=False).shape == (1, 5)


@pytest.mark.parametrize(("text", "negative", "routes"), [(FACTS[0], FACTS[1], (0, 1)), (UNMATCHED, "the", (-1, -1))])
def test_a_negative_prompt_has_a_route_of_its_own(taught, text, negative, routes):
    """It is longer than the prompt, or shorter, and what is said behind it is no part of it."""
    other, decided = taught.ids(negative), []
    said = taught.ids("river")[:, :1]
    taught.add(torch.cat([other, said], dim=1))
    taught.model.register_forward_hook(lambda *_: decided.append(_routes(taught)[0]))
    settings = {
        "guidance_scale": 1.5,
        "negative_prompt_ids": other,
        "prefix_allowed_tokens_fn": lambda *_: said[0].tolist(),
    }
    taught.model.generate(taught.ids(text), max_new_tokens=4, do_sample=False, **settings)
    assert decided == [routes[0], *[routes[1]] * 7]
    assert _routes(taught) == [routes[0]]  # afterwards, the prompt's own


def test_a_pass_within_a_generation_is_a_prompt_of_its_own(taught):
    longer, decided = taught.ids("the river " + FACTS[1]), []
    taught.add(longer)

    def allowed(*_):
        taught.model(input_ids=longer, use_cache=False)
        decided.append(taught.memoir.last_routes[0].edit_id)
        return [5, 6]

    output = taught.model.generate(
        taught.ids(FACTS[0]), max_new_tokens=3, do_sample=False, prefix_allowed_tokens_fn=allowed
    )
    assert decided == [3, 3, 3] and set(output[0, -3:].tolist()) <= {5, 6}
    assert _routes(taught) == [0]


@pytest.mark.parametrize("by_config", [False, True])
def test_a_negative_prompt_without_a_cache_is_refused(taught, by_config):
    """What is said behind it would be read as a part of it."""
    settings = {"guidance_scale": 1.5, "use_cache": False, "max_new_tokens": 2}
    if by_config:
        settings = {"generation_config": GenerationConfig(**settings)}
    with pytest.raises(UnsupportedModelError, match="guidance_scale=1.5 with use_cache=False"):
        taught.model.generate(taught.ids(FACTS[0]), **settings)
    taught.model.generate(taught.ids(FACTS[0]), guidance_scale=1.0, use_cache=False, max_new_tokens=2)
