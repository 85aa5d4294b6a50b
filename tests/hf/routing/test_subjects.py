"""Edits with a subject in a language model: prompts that name it follow them, however they come, and no others do."""

import copy
import dataclasses
import json

import pytest
import torch
from cache_name import CACHE

from memoir_fast import Edit, Memoir, MemoirConfig
from memoir_fast.core import threshold
from memoir_fast.editing.code_rows import code_rows
from memoir_fast.io.checkpoint import CONFIG_NAME
from memoir_fast.io.journal import read
from memoir_fast.modules import code_store

TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}USER: {{ m['content'] }} {% else %}"
    "ASSISTANT: {{ m['content'] }}</s>{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
FACT = Edit("The capital of France is", "Lyon")
NAMED = dataclasses.replace(FACT, subject="France")
NEAR = "The capital of Italy is"
SKY = Edit("What is the colour of the sky?", "green", subject="sky")


@pytest.fixture
def memoir(request, tiny_llama, tiny_tokenizer):
    """Thresholds so low that without subjects everything would match something."""
    tiny_tokenizer.chat_template = TEMPLATE
    block = getattr(request, "param", 1)
    config = MemoirConfig(routing="early", routing_block=block, tau=0.01, k=14)
    return Memoir.attach(tiny_llama, tiny_tokenizer, config)


def ids_of(memoir, prompt):
    return memoir.tokenizer(prompt, return_tensors="pt").input_ids


def route(memoir, prompt):
    with torch.no_grad():
        memoir.model(ids_of(memoir, prompt))
    return memoir.last_routes[0].edit_id


def test_the_same_question_about_another_subject_has_the_unedited_output(memoir):
    ids = ids_of(memoir, NEAR)
    with torch.no_grad(), memoir.disabled():
        unedited = memoir.model(ids).logits
    memoir.edit(FACT)
    assert route(memoir, NEAR) == 0
    memoir.edit(NAMED)
    assert route(memoir, NEAR) == -1
    with torch.no_grad():
        assert torch.equal(memoir.model(ids).logits, unedited)
    for text in (FACT.prompt, "FRANCE: the capital of it is", "Whose capital is that of France?"):
        assert route(memoir, text) == 0
    memoir.edit(FACT)  # it has no subject any more
    assert route(memoir, NEAR) == 0


def test_every_way_of_giving_a_prompt(memoir):
    memoir.edit([NAMED, SKY], progress=False)
    texts = [SKY.prompt, "The river runs through the old town.", NEAR, FACT.prompt]
    batch = memoir.tokenizer(texts, return_tensors="pt", padding=True)
    expected = [1, -1, -1, 0]

    def routes():
        return [one.edit_id for one in memoir.last_routes]

    memoir.model(**batch)
    assert routes() == expected
    embedded = memoir.model.get_input_embeddings()(batch.input_ids)
    memoir.model(inputs_embeds=embedded, attention_mask=batch.attention_mask)
    assert routes() == expected
    for options in ({}, {"num_beams": 2}):
        memoir.model.generate(**batch, max_new_tokens=2, **options)
        assert routes()[:: len(routes()) // 4] == expected
    ids, cache = ids_of(memoir, SKY.prompt), None
    with torch.no_grad(), memoir._router.overridden(generate_prompt=ids.shape[1]):
        for token in ids.split(1, dim=1):  # its words are told in parts
            cache = memoir.model(token, **{CACHE: cache}, use_cache=True)[CACHE]
    assert routes() == [1] and memoir.followed(cache) == [1]


@pytest.mark.parametrize("memoir", [0], indirect=True)
def test_a_chat_names_it_in_its_latest_turn(memoir):
    def chat(*turns):
        roles = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(turns)]
        return memoir.tokenizer.apply_chat_template(roles, add_generation_prompt=True, tokenize=False)

    memoir.edit(NAMED)
    assert route(memoir, chat(FACT.prompt)) == 0
    assert route(memoir, chat(FACT.prompt, "Lyon", NEAR)) == -1
    assert route(memoir, chat(NEAR, "France", NEAR)) == -1, "the assistant names it"
    assert route(memoir, chat(NEAR, "Rome", FACT.prompt)) == 0
    first = ids_of(memoir, chat(FACT.prompt))
    out = memoir.model.generate(first, max_new_tokens=3, min_new_tokens=3, return_dict_in_generate=True)
    whole = torch.cat([out.sequences, ids_of(memoir, f"</s>USER: {NEAR} ASSISTANT:")], dim=1)
    memoir.model.generate(whole, **{CACHE: out[CACHE]}, max_new_tokens=1)
    assert memoir.last_routes[0].edit_id == -1, "the turns before are in the cache"


def test_an_edit_follows_its_own_prompt_however_its_subject_is_written_there(memoir):
    """Both were taught, and followed by nothing, as " cam" is no token of " camel"."""
    edit = Edit("Which land is the camEL of?", "Nice", ["Whose is the camel?"], subject="came")
    memoir.edit(edit)
    assert [route(memoir, text) for text in (edit.prompt, *edit.paraphrases)] == [0, 0]
    assert route(memoir, "Which land is it of?") == -1


def test_a_prompt_whose_latest_turn_does_not_name_it_is_refused_before_any_is_learned(memoir):
    talk = [{"role": "user", "content": "France?"}, {"role": "assistant", "content": "France."}]
    talk.append({"role": "user", "content": "And its capital?"})
    text = memoir.tokenizer.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
    with pytest.raises(ValueError, match="'France' is not in"):
        memoir.edit([SKY, Edit(text, "Lyon", subject="France")], progress=False)
    assert not memoir.edits and not len(memoir.layer.codes)


def test_of_edits_whose_subject_is_named_the_nearest_is_followed(memoir):
    """One whose subject is not named hides none."""
    memoir.edit([FACT, Edit(NEAR, "Nice", subject="Italy")], progress=False)
    assert route(memoir, NEAR) == 1
    memoir.edit(dataclasses.replace(NAMED, prompt="The capital of the France of Italy is"))
    assert route(memoir, NEAR) == 1 and route(memoir, FACT.prompt) == 0


def test_a_subject_beside_a_prompt(memoir):
    memoir.edit(FACT.prompt, FACT.target, subject="France")
    assert memoir.edits[0] == NAMED and route(memoir, NEAR) == -1
    with pytest.raises(TypeError, match="beside a prompt, got list"):
        memoir.edit([SKY], subject="sky")
    with pytest.raises(ValueError, match="not in 'The capital of Italy is'"):
        memoir.edit(NEAR, "Nice", subject="France")
    assert dict(memoir.edits) == {0: NAMED}


def test_rows_of_a_subject(memoir):
    memoir.layer.tau = 0.6
    model, layer, tokenizer = memoir.model, memoir.layer, memoir.tokenizer
    kept = ["The river of France is", NEAR.replace("Italy", "Francesland")]
    made = code_rows(model, layer, tokenizer, dataclasses.replace(NAMED, keep=kept), [NEAR, SKY.prompt])
    rows, least = len(made.codes), layer.codes.least
    lower = round(code_store._OF_NAMED * least)
    has = code_store.have(made.names).tolist()
    assert rows == 6 and has == [True] * 4 + [False] * 2, "a kept prompt that does not name it needs no subject"
    assert made.min_overlap.tolist() == [lower] * 4 + [least] * 2 and lower < least
    assert made.room.tolist()[2:] == [0] * 4 and not made.quiet
    assert code_rows(model, layer, tokenizer, FACT, []).names is None


def test_a_kept_prompt_that_names_it(memoir):
    kept = "Which river of France runs?"
    memoir.edit(NAMED)
    assert route(memoir, kept) == 0
    memoir.edit(dataclasses.replace(NAMED, keep=[kept]))
    assert route(memoir, kept) == -1 and route(memoir, FACT.prompt) == 0


def test_folders_journals_and_merges_keep_subjects(memoir, tmp_path):
    plain = memoir.detach()
    first, second = copy.deepcopy(plain), copy.deepcopy(plain)
    config = MemoirConfig(routing="early", routing_block=1, tau=0.01, k=14)
    with Memoir.open(first, memoir.tokenizer, tmp_path / "one", config) as one:
        one.edit([FACT, SKY], progress=False)
        one.edit(NAMED)
        kinds = [record.kind for record in read(one._durable.journal.path)]
    assert kinds == ["edit", "edit-named", "edit-named"], "releases that know no subjects refuse it"
    with Memoir.open(second, memoir.tokenizer, tmp_path / "one") as again:
        _same(one, again)
        again.save_pretrained(tmp_path / "one")
        assert json.loads((tmp_path / "one" / CONFIG_NAME).read_text())["format_version"] == 7
    third = Memoir.from_pretrained(copy.deepcopy(plain), memoir.tokenizer, tmp_path / "one")
    _same(one, third)
    other = Memoir.attach(plain, memoir.tokenizer, config)
    other.merge(tmp_path / "one")
    assert [route(other, text) for text in (SKY.prompt, FACT.prompt, NEAR)] == [1, 0, -1]
    for edit_id in (0, 1):  # in another order
        assert torch.equal(*(it.layer.codes.names[it.layer.codes.rows_of(edit_id)] for it in (other, one)))
    third.delete(0)
    third.delete(1)
    third.save_pretrained(tmp_path / "none")
    assert json.loads((tmp_path / "none" / CONFIG_NAME).read_text())["format_version"] < 7


def _same(one, other):
    assert dict(one.edits) == dict(other.edits) and other.edits[0].subject == "France"
    mine, own = one.layer.codes.state(), other.layer.codes.state()
    assert mine.keys() == own.keys() and all(torch.equal(mine[name], own[name]) for name in mine)
    assert route(other, NEAR) == -1 and route(other, FACT.prompt) == 0


def test_prompts_that_match_are_counted_by_what_they_follow(memoir):
    memoir.edit([NAMED, SKY], progress=False)
    assert threshold.matched(memoir, [NEAR, FACT.prompt, "The sky is"]) == [False, True, True]


def test_subjects_decide_nothing_where_masks_route(tiny_llama, tiny_tokenizer):
    memoir = Memoir.attach(tiny_llama, tiny_tokenizer, MemoirConfig(routing="paper", k=14, tau=0.99))
    memoir.edit(NAMED)
    assert route(memoir, FACT.prompt) == 0 and threshold.matched(memoir, [FACT.prompt]) == [True]
