"""One model in many threads: whoever generates sees the memory before or after a finished edit, never in between."""

import contextlib
import copy
import dataclasses
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from memoir_fast import RECIPES, Memoir, MemoirConfig
from memoir_fast.errors import MemoirError
from memoir_fast.modules import MemoirLinear, views

PROMPTS = ["The capital of France is", "Which animal lives in", "What is the colour", "The river runs through"]
TARGETS = ["Rome", "camel", "Greek", "the town"]
RECIPE = dataclasses.replace(RECIPES["fast"], prefixes=0, rewordings=0, questions=0, steps=4, learning_rate=0.2)


@pytest.fixture
def routing():
    return "early"


@pytest.fixture
def memoir(tiny_llama, tiny_tokenizer, routing):
    tiny_llama.lm_head.weight.data *= 4
    config = MemoirConfig(recipe=RECIPE, tau=0.9, k=16, background=8, routing=routing, page_edits=2)
    made = Memoir.attach(tiny_llama, tiny_tokenizer, config)
    made.edit([(prompt, "London") for prompt in PROMPTS[:2]], progress=False)
    return made


class Drawn(LogitsProcessor):
    """Samples by a generator of its own: the same tokens in whatever thread."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, ids, scores):
        noise = torch.rand(scores.shape, generator=self.generator).clamp(min=1e-9)
        return scores - (-noise.log()).log()


def generate(model, tokenizer, kind, prompt, seed):
    """Token ids of four new tokens: greedy, sampled, or by beams."""
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    options = {"greedy": {}, "sample": {"do_sample": True, "top_k": 1}, "beams": {"num_beams": 2}}[kind]
    if kind == "sample":
        options["logits_processor"] = LogitsProcessorList([Drawn(seed)])
    options = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None} | options
    return model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, **options)[0].tolist()


class Versions:
    """Every state that the memory has had, noted while nobody reads it."""

    def __init__(self, memoir, monkeypatch):
        self.layer, self.states = memoir.layer, []
        changing = MemoirLinear.changing
        versions = self

        def noted(layer, **what):
            block = changing(layer, **what)

            class Noting:
                def __enter__(self):
                    block.__enter__()

                def __exit__(self, *error):
                    versions.note()
                    return block.__exit__(*error)

            return Noting()

        monkeypatch.setattr(MemoirLinear, "changing", noted)
        self.note()
        self.alone = copy.deepcopy(memoir.model)
        self._answers = {}

    def note(self):
        parts = [self.layer.store, self.layer.codes]
        kept = [None if part is None else copy.deepcopy(part) for part in parts]
        self.states.append((copy.deepcopy(self.layer.memory), *kept))

    def answer(self, version, tokenizer, *call):
        """What a generation by itself gives on that state of the memory."""
        if (version, call) not in self._answers:
            layer = next(module for module in self.alone.modules() if isinstance(module, MemoirLinear))
            layer.memory, layer.store, layer.codes = self.states[version]
            self._answers[version, call] = generate(self.alone, tokenizer, *call)
        return self._answers[version, call]


def run_interleaving(memoir, versions, draw, folder):
    """Four threads, each with two things to do; every generation must be that of a version current meanwhile."""
    made, start = [], threading.Barrier(4)

    def work(seed):
        own = random.Random(seed)
        start.wait()
        for _ in range(2):
            what = own.choice(["greedy", "greedy", "sample", "beams", "edit", "edit", "delete", "save"])
            time.sleep(own.random() * 0.01)
            if what == "edit":
                memoir.edit(own.choice(PROMPTS), own.choice(TARGETS))
            elif what == "delete":
                live = sorted(memoir.edits)
                with contextlib.suppress(MemoirError):  # another thread may be first
                    for edit_id in own.sample(live, min(1, len(live))):
                        memoir.delete(edit_id)
            elif what == "save":
                memoir.save_pretrained(folder)
            else:
                call = (what, own.choice(PROMPTS), own.randrange(100))
                first = len(versions.states) - 1
                tokens = generate(memoir.model, memoir.tokenizer, *call)
                made.append((call, tokens, range(first, len(versions.states))))

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(work, draw.random()) for _ in range(4)]:
            done.result()
    for call, tokens, current in made:
        allowed = [versions.answer(version, memoir.tokenizer, *call) for version in current]
        assert tokens in allowed, (call, tokens, allowed)
    return sum(len(set(map(str, (versions.answer(v, memoir.tokenizer, *c) for v in r)))) > 1 for c, _, r in made)


@pytest.mark.parametrize("seed", range(20))
def test_generations_see_one_memory(memoir, tmp_path, monkeypatch, seed):
    """Ten interleavings each: two hundred in all."""
    versions, draw = Versions(memoir, monkeypatch), random.Random(seed)
    for _ in range(10):
        run_interleaving(memoir, versions, draw, tmp_path / "memory")
    assert len(versions.states) > 10
    assert not memoir.layer.views.outdated and not memoir.layer.views._running, "nothing is kept for those that ended"
    assert not memoir.layer.memory._copies and len(memoir.layer.memory.numbers) > 1


def test_a_generation_that_ends_during_a_change_leaves_nothing(memoir, monkeypatch):
    """Between two of its passes a generation reads nothing, so a change does not wait for it."""
    began, end, twin = threading.Event(), threading.Event(), views._twin

    def generation():
        with memoir.layer.views.generation():
            began.set()
            end.wait(10)

    thread = threading.Thread(target=generation)

    def ended(module):
        end.set()
        thread.join(0.3)
        return twin(module)

    thread.start()
    assert began.wait(10)
    monkeypatch.setattr(views, "_twin", ended)
    memoir.delete(0)
    thread.join(10)
    assert end.is_set() and not memoir.layer.views.outdated and not memoir.layer.views._running


def test_a_generation_goes_on_with_the_memory_it_began_with(memoir):
    """An edit that is written in the middle of a generation shows from the next one on."""
    prompt, seen = PROMPTS[0], []
    before = generate(memoir.model, memoir.tokenizer, "greedy", prompt, 0)
    ids = memoir.tokenizer(prompt, return_tensors="pt").input_ids

    class Editing(LogitsProcessor):
        def __call__(self, _, scores):
            if not seen:
                seen.append(memoir.edit(prompt, "camel", recipe=dataclasses.replace(RECIPE, steps=60)))
            return scores

    now = memoir.model.generate(
        ids, max_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=None,
        logits_processor=LogitsProcessorList([Editing()]),
    )[0].tolist()  # fmt: skip
    assert seen[0].replaced and now == before
    assert generate(memoir.model, memoir.tokenizer, "greedy", prompt, 0) != before


@pytest.mark.parametrize("alone", [True, False])
def test_a_pass_goes_on_with_the_memory_that_it_was_decided_by(memoir, alone):
    """An edit that is written between the block where routes are made and the edited layer shows from the next on."""
    ids, seen = memoir.tokenizer(PROMPTS[0], return_tensors="pt").input_ids, []

    def logits():
        with torch.no_grad(), contextlib.nullcontext() if alone else memoir.layer.views.generation():
            return memoir.model(ids).logits

    def edit():
        seen.append(memoir.edit(PROMPTS[0], "camel", recipe=dataclasses.replace(RECIPE, steps=60)))

    def editing(*_):
        if threading.current_thread() is threading.main_thread():
            other = threading.Thread(target=edit)
            other.start()
            other.join(60)

    before = logits()
    hook = memoir.layer.register_forward_pre_hook(editing)
    now = logits()
    hook.remove()
    assert seen and torch.equal(now, before) and not torch.equal(logits(), before)


def _all_pages(memoir):
    return {number: memoir.layer.memory.page(number).clone() for number in memoir.layer.memory.numbers}


def test_of_a_memory_that_changes_only_the_page_that_changes_is_copied(memoir):
    """Once, however often it changes, and for a generation that has an edit there."""
    memory, views_ = memoir.layer.memory, memoir.layer.views
    memoir.edit(PROMPTS[2], "London")  # opens a second page
    before = _all_pages(memoir)
    with views_.generation():
        memoir.edit(PROMPTS[3], "camel")
        memoir.edit(PROMPTS[2], "Greek")
        assert memory._copies == {2} and len(views_.outdated) == 1 and torch.equal(memory.page(2), before[1])
        current = views_.current
        assert current.memory.table is memory.table and current.store.page[:3].tolist() == [0, 0, 2]
        assert memoir.layer.store.page[:4].tolist() == [0, 0, 1, 1]
        memoir.edit("Who wrote the play?", "nobody")  # opens a third page, of which the generation has no edit
        assert memory._copies == {2} and memory.numbers == [0, 1, 3]
        memoir.delete(0)
        memoir.delete(1)
        memoir.edit("Where does it end?", "here")  # goes where there is room
        memoir.edit("When does it begin?", "now")  # empties the first page
        assert torch.equal(memory.page(current.store.page[0]), before[0]) and len(memory._copies) == 2
    del current
    assert not memory._copies and memory.numbers == [0, 1, 3]


def test_where_there_is_no_room_for_a_copy_the_whole_is_copied(tiny_llama, tiny_tokenizer):
    config = MemoirConfig(recipe=RECIPE, tau=0.9, k=16, background=8, page_edits=1, max_pages=2)
    memoir = Memoir.attach(tiny_llama, tiny_tokenizer, config)
    memoir.edit([(prompt, "London") for prompt in PROMPTS[:2]], progress=False)
    before = _all_pages(memoir)
    with memoir.layer.views.generation():
        memoir.edit(PROMPTS[0], "Rome")
        current = memoir.layer.views.current
        assert current.memory.table is not memoir.layer.memory.table
        assert all(torch.equal(current.memory.page(number), page) for number, page in before.items())
        assert not torch.equal(memoir.layer.memory.page(0), before[0])


def test_learning_does_not_show_in_other_threads(memoir, monkeypatch):
    """A forward pass of another thread, at every step of an edit: neither an exception, nor another output."""
    ids = memoir.tokenizer("In which country is the mountain?", return_tensors="pt").input_ids
    with torch.no_grad():
        expected = memoir.model(ids).logits
    outputs, losses = [], type(memoir._context.upper).logits

    def looked(upper, *args):
        with ThreadPoolExecutor(1) as pool:
            outputs.append(pool.submit(torch.no_grad()(lambda: memoir.model(ids).logits)).result())
        return losses(upper, *args)

    monkeypatch.setattr(type(memoir._context.upper), "logits", looked)
    memoir.edit("Who wrote the play?", "nobody")
    assert len(outputs) > 2 and all(torch.equal(output, expected) for output in outputs)


def test_two_threads_that_edit_take_turns(memoir):
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda i: memoir.edit(f"The number {i} is", "Rome"), range(6)))
    assert sorted(result.edit_id for result in done) == list(range(2, 8))
    assert {edit.prompt for edit in memoir.edits.values()} >= {f"The number {i} is" for i in range(6)}


def test_a_change_from_within_a_forward_pass_is_refused(memoir):
    ids = memoir.tokenizer(PROMPTS[0], return_tensors="pt").input_ids
    router, refused = memoir.layer.router, []

    def deleting(x):
        with pytest.raises(MemoirError, match="cannot be changed from within a forward pass"):
            memoir.delete(0)
        refused.append(1)
        return router(x)

    memoir.layer.router = deleting
    with torch.no_grad():
        memoir.model(ids)
    memoir.layer.router = router
    assert refused and 0 in memoir.edits
    memoir.delete(0)


def test_routes_are_read_in_the_thread_that_decided_them(memoir):
    ids = memoir.tokenizer(PROMPTS[1], return_tensors="pt").input_ids
    options = {"max_new_tokens": 2, "do_sample": False, "pad_token_id": 0}
    memoir.model.generate(ids, **options)
    own = memoir.last_routes
    assert [route.edit_id for route in own] == [1]
    with ThreadPoolExecutor(1) as pool:
        pool.submit(memoir.model.generate, ids.repeat(3, 1), **options).result()
    assert memoir.last_routes == own
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: memoir.last_routes).result() == own * 3, "without its own: the latest of any"


def test_faded_edits_are_found_while_others_generate(memoir):
    """After each of its passes another thread decides the routes of five rows."""
    expected = memoir.faded()
    ids = memoir.tokenizer(PROMPTS[0], return_tensors="pt").input_ids.repeat(5, 1)
    here, passes = threading.get_ident(), []

    def meanwhile(*_):
        if threading.get_ident() == here:
            passes.append(1)
            with ThreadPoolExecutor(1) as pool:
                pool.submit(torch.no_grad()(memoir.model), ids).result()

    handle = memoir.model.register_forward_hook(meanwhile)
    assert memoir.faded() == expected and passes
    handle.remove()


@pytest.mark.parametrize("routing", ["paper"])
@pytest.mark.parametrize("change", ["delete", "replace", "add", "tau"])
def test_a_generation_decides_by_the_store_it_began_with(memoir, change):
    """Also where its prompt comes in parts, and something changes before the last."""
    layer = memoir.layer
    mask = layer.store.masks[:1].clone()
    near, far = mask.clone(), torch.zeros_like(mask)
    near[0, 0] ^= near[0, 0] & -near[0, 0]  # one bit less: 15 of 16
    far[0, 1] = 0xFFFF  # the last 16 of 48 bits
    queries = torch.cat([mask, near, far])
    before = layer.search(queries)
    assert before[0].tolist() == [0, 0, -1] and before[1][:2].tolist() == [16, 15]
    with layer.views.generation():
        if change == "delete":
            memoir.delete(0)
        elif change == "replace":
            with layer.changing(rows=True):
                layer.store.replace(0, layer.store.masks[1])
        elif change == "add":
            with layer.changing():
                layer.store.append(far[0])
        else:
            layer.tau = 1.0
        assert all(map(torch.equal, layer.search(queries), before))
        with ThreadPoolExecutor(1) as pool:
            now = pool.submit(layer.search, queries).result()
        assert not torch.equal(now[0], before[0])
    assert all(map(torch.equal, layer.search(queries), now))


def test_a_pass_decides_and_adds_by_one_memory(memoir):
    """A change between the block where the route is made and the edited layer comes after the pass."""
    ids = memoir.tokenizer(PROMPTS[0], return_tensors="pt").input_ids
    with torch.no_grad():
        before = memoir.model(ids).logits
        with ThreadPoolExecutor(1) as pool:

            def meanwhile(*_):
                if 0 in memoir.edits:
                    pool.submit(memoir.delete, 0).result()

            handle = memoir.model.model.layers[1].register_forward_hook(meanwhile)
            during = memoir.model(ids).logits
            handle.remove()
        after = memoir.model(ids).logits
    assert torch.equal(during, before) and not torch.equal(after, before)
    assert not memoir.layer.views._running and not memoir.layer.views.outdated
