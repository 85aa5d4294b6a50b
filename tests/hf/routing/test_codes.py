"""Routing by codes in a language model: every way of giving it a prompt comes to the same route."""

import copy
import gc

import pytest
import torch
from cache_name import CACHE

from memoir_fast import Edit, Memoir, MemoirConfig
from memoir_fast.errors import MemoirError
from memoir_fast.hf.cache import remembered

FACTS = [
    Edit("The capital of France is", "Lyon"),
    Edit("Who wrote the play?", "Bob of Rome"),
    Edit("What is the colour of the sky?", "green"),
]
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}USER: {{ m['content'] }} {% else %}"
    "ASSISTANT: {{ m['content'] }}</s>{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


@pytest.fixture
def memoir(request, tiny_llama, tiny_tokenizer):
    tiny_tokenizer.chat_template = TEMPLATE
    block = getattr(request, "param", 1)
    found = Memoir.attach(tiny_llama, tiny_tokenizer, MemoirConfig(routing="early", routing_block=block, tau=0.7, k=14))
    found.edit(FACTS, progress=False)
    return found


def ids_of(memoir, prompt):
    return memoir.tokenizer(prompt, return_tensors="pt").input_ids


def routes(memoir):
    return [one.edit_id for one in memoir.last_routes]


@pytest.fixture
def batch(memoir):
    texts = [FACTS[2].prompt, "The river runs through the old town.", FACTS[0].prompt]
    return memoir.tokenizer(texts, return_tensors="pt", padding=True)


def test_a_padded_batch_and_each_row_alone(memoir, batch):
    assert batch.attention_mask.min() == 0
    memoir.model(**batch)
    assert routes(memoir) == [2, -1, 0] and memoir.last_routes[0].overlap == pytest.approx(1.0)
    for edit_id, fact in enumerate(FACTS):
        memoir.model(ids_of(memoir, fact.prompt))
        assert routes(memoir) == [edit_id]


def test_a_chat_finds_what_was_taught_plainly_and_the_other_way_round(memoir):
    chat = memoir.tokenizer.apply_chat_template(
        [{"role": "user", "content": FACTS[1].prompt}], add_generation_prompt=True, tokenize=False
    )
    memoir.model(ids_of(memoir, chat))
    assert routes(memoir) == [1]
    talk = [("user", "Which animal lives in the desert?"), ("assistant", "a camel"), ("user", "Who wrote the novel?")]
    taught = memoir.tokenizer.apply_chat_template(
        [{"role": role, "content": text} for role, text in talk], add_generation_prompt=True, tokenize=False
    )
    new = memoir.edit(taught, "Ann").edit_id
    memoir.model(ids_of(memoir, "Who wrote the novel?"))
    assert routes(memoir) == [new]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_prefill_in_chunks(memoir, size):
    ids = ids_of(memoir, FACTS[2].prompt)
    with torch.no_grad():
        whole = memoir.model(ids).logits[:, -1]
        cache = None
        with memoir._router.overridden(generate_prompt=ids.shape[1]):
            for start in range(0, ids.shape[1], size):
                out = memoir.model(ids[:, start : start + size], **{CACHE: cache}, use_cache=True)
                cache = out[CACHE]
    assert routes(memoir) == [2] and memoir.followed(cache) == [2]
    torch.testing.assert_close(out.logits[:, -1], whole, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_return_sequences": 2, "do_sample": True}])
def test_generate(memoir, batch, options):
    memoir.model.generate(**batch, max_new_tokens=4, **options)
    assert len(memoir.last_routes) in (3, 6, 9) and set(routes(memoir)) == {2, -1, 0}


def test_embeddings_in_place_of_ids(memoir, batch):
    embedded = memoir.model.get_input_embeddings()(batch.input_ids)
    memoir.model(inputs_embeds=embedded, attention_mask=batch.attention_mask)
    assert routes(memoir) == [2, -1, 0]
    given = memoir.model.generate(inputs_embeds=embedded, attention_mask=batch.attention_mask, max_new_tokens=3)
    plain = memoir.model.generate(**batch, max_new_tokens=3)
    assert torch.equal(given, plain[:, batch.input_ids.shape[1] :])
    memoir.model(inputs_embeds=embedded + 1.0, attention_mask=batch.attention_mask)  # no token's
    assert len(memoir.last_routes) == 3


def test_embeddings_may_grow_but_no_others_take_their_place(memoir):
    """Of another module, what it embeds is not seen."""
    prompt = ids_of(memoir, FACTS[0].prompt)
    memoir.model.resize_token_embeddings(390, mean_resizing=False)
    memoir.model(torch.cat([prompt, torch.tensor([[388]])], dim=1))
    memoir.model(prompt)
    assert routes(memoir) == [0]
    memoir.model.set_input_embeddings(copy.deepcopy(memoir.model.get_input_embeddings()))
    with pytest.raises(MemoirError, match="embedded by a module that was put into the model after its memory"):
        memoir.model(prompt)


@pytest.mark.parametrize("memoir", [0], indirect=True)  # at block 0, tokens know nothing of the turns before
def test_a_new_turn_is_decided_on_what_the_user_says(memoir):
    tokenizer, model = memoir.tokenizer, memoir.model
    first = ids_of(memoir, "USER: The river runs through the old town. ASSISTANT:")
    out = model.generate(first, max_new_tokens=3, min_new_tokens=3, return_dict_in_generate=True, do_sample=False)
    assert routes(memoir) == [-1]
    rest = tokenizer(f"</s>USER: {FACTS[0].prompt} ASSISTANT:", return_tensors="pt").input_ids
    whole = torch.cat([out.sequences, rest], dim=1)
    model.generate(whole, **{CACHE: out[CACHE]}, max_new_tokens=2, do_sample=False)
    assert routes(memoir) == [0]
    model.generate(whole, max_new_tokens=1, do_sample=False)  # the same, read from the start
    assert routes(memoir) == [0]


@torch.no_grad()
def test_rows_of_a_cache_are_reordered_repeated_and_cropped(memoir, batch):
    out = memoir.model(**batch, use_cache=True)
    cache, state = out[CACHE], remembered(out[CACHE])
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([5, 0]))
    assert memoir.followed(cache) == [0, 2] and state.sums.mass.shape[0] == 2
    length = state.length
    for token in (7, 8):
        memoir.model(torch.full((2, 1), token), **{CACHE: cache})
    assert state.length == length + 2 and state.count.shape == (2, 1)
    cache.crop(-2)
    assert state.length == length and state.said() is None
    cache.crop(2 - length)
    assert float(state.sums.mass.sum()) == 0
    assert copy.deepcopy(cache).memoir_state.length == 2


def test_the_layer_by_itself_has_no_routes(memoir):
    memoir._router.forget_last()
    with pytest.raises(MemoirError, match="cannot be called by itself"):
        memoir.layer(torch.randn(2, 5, 48))


def test_nothing_is_left_behind(memoir):
    model = memoir.detach()
    gc.collect()
    hooks = [module for module in model.modules() if module._forward_pre_hooks or module._forward_hooks]
    assert not hooks and "generate" not in model.__dict__


def test_a_copy_routes_by_itself(memoir, batch):
    other = copy.deepcopy(memoir)
    memoir.delete(2)
    memoir.model(**batch)
    assert routes(memoir) == [-1, -1, 0]
    other.model(**batch)
    assert routes(other) == [2, -1, 0]


def test_an_edit_that_is_replaced_is_found_once(memoir):
    again = memoir.edit(FACTS[0].prompt, "Nice")
    assert again.replaced and again.edit_id == 0 and len(memoir.layer.codes.rows_of(0)) == 2
    memoir.model(ids_of(memoir, FACTS[0].prompt))
    assert routes(memoir) == [0]


def test_an_edit_that_fails_leaves_all_codes_as_they_were(memoir, monkeypatch):
    before = {name: value.clone() for name, value in memoir.layer.codes.state().items()}
    monkeypatch.setattr(type(memoir.layer.store), "rest_after", lambda *_: (_ for _ in ()).throw(RuntimeError("no")))
    for prompt in (FACTS[0].prompt, "Where is the mountain?"):
        with pytest.raises(RuntimeError, match="no"):
            memoir.edit(prompt, "Nice")
    after = memoir.layer.codes.state()
    assert all(torch.equal(after[name], value) for name, value in before.items()) and len(memoir.edits) == 3


def test_a_block_behind_the_edited_layer_is_refused(tiny_llama, tiny_tokenizer):
    config = MemoirConfig(routing="early", routing_block=2, layer="model.layers.1.mlp.down_proj")
    with pytest.raises(ValueError, match="from 0 to 1"):
        Memoir.attach(tiny_llama, tiny_tokenizer, config)
    assert "MemoirLinear" not in repr(tiny_llama)
