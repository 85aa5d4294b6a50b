"""Continuous batching: whatever else is in a pass, each request's tokens are those of its own run alone.

MEMOIR_FAST_INTERLEAVINGS=500 runs so many of the random interleavings, instead of a few.
"""

import contextlib
import copy
import dataclasses
import inspect
import os
import random
import time
from types import SimpleNamespace

import pytest
import torch
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching import continuous_api

from memoir_fast import RECIPES, Edit, Memoir, MemoirConfig
from memoir_fast.errors import MemoirError, PackedBatchError
from memoir_fast.hf import continuous, pieces
from memoir_fast.hf.beside import beside

PROMPTS = ["The capital of France is", "Who wrote the play?", "Which animal lives in", "The river runs through", "a"]
BANKS = [None, "acme", "globex"]
QUICK = dataclasses.replace(RECIPES["fast"], prefixes=0, rewordings=0, questions=0, steps=3, learning_rate=0.3)
PAGE = "page_size" if "page_size" in inspect.signature(ContinuousBatchingConfig).parameters else "block_size"


def _attach(model, tokenizer, routing):
    model.lm_head.weight.data *= 4
    config = MemoirConfig(recipe=QUICK, routing=routing, tau=0.9, k=16, background=8, page_edits=2)
    memoir = Memoir.attach(model, tokenizer, config)
    memoir.edit([Edit(PROMPTS[0], "London"), Edit(PROMPTS[1], "Rome")], progress=False)
    memoir.edit(PROMPTS[0], "camel", bank="acme")
    for page in memoir.layer.memory.numbers:
        memoir.layer.memory.page(page).normal_()  # what it adds changes every token, until it rests
    return memoir


@pytest.fixture(autouse=True)
def no_garbage_is_collected(monkeypatch):
    """A manager collects all garbage several times, which takes most of the time of tests as small as these."""
    monkeypatch.setattr(continuous_api, "gc", SimpleNamespace(collect=lambda: 0))


@pytest.fixture(params=["early", "paper"])
def memoir(request, tiny_llama, tiny_tokenizer):
    return _attach(tiny_llama, tiny_tokenizer, request.param)


early = pytest.mark.parametrize("memoir", ["early"], indirect=True)


def _config(new=6, **changes):
    settings = {"max_new_tokens": new, "do_sample": False, "eos_token_id": 384, "pad_token_id": 0}
    return GenerationConfig(**settings | changes)


def _small(blocks=24, tokens=16, **changes):
    return ContinuousBatchingConfig(num_blocks=blocks, max_batch_tokens=tokens, **{PAGE: 4}, **changes)


def _ids(memoir, text):
    return memoir.tokenizer(text).input_ids


def _alone(memoir, ids, new=6):
    given = torch.tensor([ids])
    return memoir.model.generate(given, attention_mask=torch.ones_like(given), generation_config=_config(new))[
        0, len(ids) :
    ].tolist()


def _batch(memoir, prompts, new=6, small=None, config=None, **more):
    config = config or _config(new)
    small = small or _small()
    found = memoir.model.generate_batch(
        prompts, generation_config=config, continuous_batching_config=small, progress_bar=False, **more
    )
    assert all(one.error is None for one in found.values())
    return {name: one.generated_tokens for name, one in found.items()}


@contextlib.contextmanager
def _manager(memoir, new=6, small=None):
    """A running manager, and a function that waits for the tokens of requests."""
    manager = memoir.model.init_continuous_batching(
        generation_config=_config(new), continuous_batching_config=small or _small()
    )
    manager.start()

    def tokens(*names):
        found = {}
        while set(names) - set(found):
            result = manager.get_result(timeout=1)
            assert result is not None or manager.is_running()
            if result is not None and result.is_finished():
                assert result.error is None
                found[result.request_id] = result.generated_tokens
        return [found[name] for name in names]

    try:
        yield manager, tokens
    finally:
        manager.stop(block=True)


def test_each_request_of_a_batch_answers_as_alone(memoir, monkeypatch):
    evicted, again = [], continuous.Request.again
    monkeypatch.setattr(continuous.Request, "again", lambda request: evicted.append(1) or again(request))
    prompts = [_ids(memoir, text) for text in (PROMPTS * 2)[:8]]
    expected = [_alone(memoir, ids, 14) for ids in prompts]
    with memoir.disabled():
        changed = [_alone(memoir, ids, 14) != said for ids, said in zip(prompts, expected, strict=True)]
    assert changed == [True, True, False, False, False, True, True, False]
    assert list(_batch(memoir, prompts, 14, _small(blocks=96, tokens=64)).values()) == expected and not evicted
    monkeypatch.setattr(pieces, "follows_nothing", lambda _: False)  # as on a device, which is not asked
    small = _small(blocks=14, tokens=8, scheduler_type="prefill_first")  # prompts in chunks, and no room for all
    assert list(_batch(memoir, prompts, 14, small).values()) == expected and evicted
    assert not memoir.layer.views._running


@early
def test_what_is_asked_for_is_asked_for_each_request(memoir):
    prompts = [_ids(memoir, PROMPTS[0])] * 3 + [_ids(memoir, PROMPTS[1])]
    which = ["acme", None, "globex", "acme"]
    expected = []
    for bank, ids in zip(which, prompts, strict=True):
        with memoir.banks(bank or ""):
            expected.append(_alone(memoir, ids))
    assert expected[0] != expected[1] == expected[2]
    assert list(_batch(memoir, prompts, memoir_banks=which).values()) == expected
    with memoir.banks("acme"):
        assert set(map(tuple, _batch(memoir, prompts[:3]).values())) == {tuple(expected[0])}
    with memoir.routed([1, -1, 0]):
        found = list(_batch(memoir, prompts[:3]).values())
    for route, said in zip([1, -1, 0], found, strict=True):
        with memoir.routed(route):
            assert said == _alone(memoir, prompts[0])
    with pytest.raises(ValueError, match="banks were named for 4 rows, of a batch of 3"):
        _batch(memoir, prompts[:3], memoir_banks=which)
    with memoir.prompts(3), pytest.raises(ValueError, match="says nothing to continuous batching"):
        _batch(memoir, prompts)


def test_a_request_goes_on_with_the_memory_that_it_was_added_under(memoir):
    ids = _ids(memoir, PROMPTS[0])
    with memoir.disabled():
        unedited = _alone(memoir, ids, 40)
    before, acme = _alone(memoir, ids, 40), None
    with memoir.banks("acme"):
        acme = _alone(memoir, ids, 40)
    with _manager(memoir, 40, _small(blocks=64)) as (manager, tokens):
        first = manager.add_request(ids)
        with memoir.banks("acme"):
            other = manager.add_request(ids)
        with memoir.disabled():
            plain = manager.add_request(ids)
        with memoir.layer.changing(page=0):
            memoir.layer.memory.page(0).neg_()
        second = manager.add_request(ids)  # of the same edit, elsewhere
        after = _alone(memoir, ids, 40)
        memoir.delete(0)
        later = manager.add_request(ids)
        assert tokens(first, other, plain, second, later) == [before, acme, unedited, after, unedited]
    assert len({tuple(said) for said in (before, acme, unedited, after)}) == 4
    assert not memoir.layer.views._running


@early
def test_forks_follow_what_their_request_follows(memoir):
    prompts = [_ids(memoir, text) for text in PROMPTS[:3]]
    config = GenerationConfig(
        do_sample=True, top_k=1, num_return_sequences=3, max_new_tokens=6, eos_token_id=384, pad_token_id=0
    )
    memoir.model.lm_head.weight.data *= 50  # whatever is drawn, the likeliest token comes out
    for blocks in (64, 20):  # where there is no room for all, some begin anew
        found = _batch(memoir, prompts, config=config, small=_small(blocks))
        assert len(found) >= 3
        for number, ids in enumerate(prompts):
            said = [tokens for name, tokens in found.items() if name.startswith(f"req_{number}")]
            assert said and all(one == _alone(memoir, ids) for one in said)


@early
def test_a_manager_that_is_kept_goes_on(memoir):
    prompts = [_ids(memoir, text) for text in PROMPTS[:3]]
    expected = [_alone(memoir, ids) for ids in prompts]
    with memoir.disabled():  # its passes are the unedited model's, and its settings its own
        unedited = [_alone(memoir, ids) for ids in prompts]
        assert list(_batch(memoir, prompts, persistent_manager=True).values()) == unedited
        manager = memoir.model._cached_continuous_batching_manager
    manager.start()
    with pytest.raises(PackedBatchError, match=r"was made inside of memoir.disabled\(\)"):
        manager.add_request(prompts[0])
    manager.stop(block=True, keep_for_next_session=True)
    for _ in range(2):
        assert list(_batch(memoir, prompts, persistent_manager=True).values()) == expected
        assert memoir.model._cached_continuous_batching_manager is manager
    memoir.delete(0)
    assert list(_batch(memoir, prompts, persistent_manager=True).values())[0] == unedited[0]
    memoir.model.destroy_cached_continuous_batching_manager()
    memoir.detach()
    assert {"init_continuous_batching", "generate_batch"}.isdisjoint(vars(memoir.model))


@early
def test_what_is_not_as_it_is_known_is_refused(memoir, monkeypatch):
    ids = _ids(memoir, PROMPTS[0])
    monkeypatch.setattr(continuous, "_OF_REQUESTS", (*continuous._OF_REQUESTS, "colour"))
    with pytest.raises(PackedBatchError, match=r"continuous batching of .* is not as it is known .*colour") as error:
        _batch(memoir, [ids])
    assert isinstance(error.value, MemoirError)
    monkeypatch.undo()
    with _manager(memoir) as (manager, _), pytest.raises(PackedBatchError, match="runs already: stop it"):
        continuous.Batches(memoir._router, memoir.layer.views, manager)
    with _manager(memoir) as (manager, _):
        del manager.input_queue.put  # a request that nobody marked
        name = manager.add_request(ids)
        result = manager.get_result(timeout=20)
    assert result.request_id == name and not result.generated_tokens
    assert "was not added through its manager" in result.error


@early
def test_passes_beside_take_turns_with_a_manager(memoir):
    """Meanwhile transformers keeps another kind of attention in the model's configuration."""
    ids, other = _ids(memoir, PROMPTS[0]), _ids(memoir, PROMPTS[2])
    expected, said = _alone(memoir, other), _alone(memoir, ids, 60)
    with _manager(memoir, 60, _small(blocks=64)) as (manager, tokens):
        name = manager.add_request(ids)
        assert all(_alone(memoir, other) == expected for _ in range(5))
        edit = memoir.edit(PROMPTS[3], "Greek").edit_id
        _alone(memoir, _ids(memoir, PROMPTS[3]))
        assert memoir.last_routes[0].edit_id == edit
        assert tokens(name) == [said]


@early
@pytest.mark.timeout(120)
def test_a_generate_that_turns_to_continuous_batching_waits_for_no_turn_of_its_own(memoir):
    ids, which, alone = _ids(memoir, PROMPTS[0]), ["acme", None], []
    for bank in which:
        with memoir.banks(bank or ""):
            alone.append(_alone(memoir, ids))
    asked = {"cache_implementation": "paged", "continuous_batching_config": _small(), "memoir_banks": which}
    said = memoir.model.generate(torch.tensor([ids, ids]), generation_config=_config(), **asked)
    assert said[0, :, len(ids) :].tolist() == alone and alone[0] != alone[1]
    with beside(), pytest.raises(MemoirError, match="Make it outside"):
        memoir.model.init_continuous_batching(generation_config=_config())
    assert _alone(memoir, ids) == alone[1]


class Interleaving:
    """Random requests, cancellations, edits and deletions on one memory and manager."""

    def __init__(self, memoir, seed):
        self.memoir, self.chance = memoir, random.Random(seed)
        self.versions = []
        self.alone = {}
        self.asked = {}  # of each request: version, prompt, length, how it was asked
        self.cancelled = set()
        self.note()

    def note(self):
        with beside():  # a copy would have the attention of a pass that runs
            self.versions.append(copy.deepcopy(self.memoir))

    def ask(self, memoir, how):
        kind, value = how
        return {"bank": memoir.banks, "route": memoir.routed}[kind](value) if kind != "off" else memoir.disabled()

    def expected(self, key):
        if key not in self.alone:
            version, text, new, how = key
            with self.ask(self.versions[version], how):
                self.alone[key] = _alone(self.versions[version], _ids(self.memoir, text), new)
        return self.alone[key]

    def add(self, manager):
        text = self.chance.choice(PROMPTS)
        how = ("bank", self.chance.choice(BANKS) or "")
        if self.chance.random() < 0.15:
            how = self.chance.choice(
                [("off", None), ("route", -1), ("route", self.chance.choice(self.memoir.layer.store.live or [-1]))]
            )
        key = len(self.versions) - 1, text, self.chance.choice([1, 4, 9, 14]), how
        with self.ask(self.memoir, how):
            self.asked[manager.add_request(_ids(self.memoir, text), max_new_tokens=key[2])] = key

    def change(self):
        live = self.memoir.layer.store.live
        if len(live) > 4 or live and self.chance.random() < 0.4:
            self.memoir.delete(self.chance.choice(live))
        else:
            target = self.chance.choice(["Rome", "camel", "Greek", "the town"])
            with contextlib.suppress(UserWarning):
                self.memoir.edit(self.chance.choice(PROMPTS[:4]), target, bank=self.chance.choice(BANKS))
        self.note()

    def run(self):
        blocks, tokens = self.chance.choice([14, 24, 48]), self.chance.choice([5, 16, 32])
        small = _small(blocks, tokens, scheduler_type=self.chance.choice(["fifo", "prefill_first"]))
        found = {}
        with _manager(self.memoir, 14, small) as (manager, _):
            for _ in range(12):
                act = self.chance.random()
                if act < 0.7 or not self.asked:
                    self.add(manager)
                elif act < 0.8:
                    self.cancelled.add(gone := self.chance.choice(list(self.asked)))
                    manager.cancel_request(gone)
                else:
                    self.change()
                time.sleep(self.chance.choice([0, 0, 0.002, 0.01]))
            while not set(self.asked) <= set(found) | self.cancelled:
                result = manager.get_result(timeout=1)
                assert result is not None or manager.is_running(), "the manager's loop has ended"
                if result is not None and result.is_finished():
                    assert result.error is None
                    found[result.request_id] = result.generated_tokens
        wrong = [self.asked[name] for name, said in found.items() if said != self.expected(self.asked[name])]
        assert not wrong
        assert not self.memoir.layer.views._running
        return len(found)


@pytest.mark.timeout(3600)
@early
def test_random_traffic(memoir):
    seeds = range(int(os.environ.get("MEMOIR_FAST_INTERLEAVINGS", "4")))
    served = sum(Interleaving(memoir, seed).run() for seed in seeds)
    print(f"{served} requests in {len(seeds)} interleavings")
    assert served > 5 * len(seeds)
