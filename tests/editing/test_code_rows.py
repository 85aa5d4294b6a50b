"""The rows and thresholds of an edit among others: forms, paraphrases, kept prompts, what grows with the store."""

import pytest
import torch

from memoir_fast import Edit, Memoir, MemoirConfig
from memoir_fast.editing.code_rows import bare, code_rows, forms, neighbours

TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}USER: {{ m['content'] }} {% else %}"
    "ASSISTANT: {{ m['content'] }}</s>{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
FACT = Edit("The capital of France is", "Lyon")
OTHERS = ["Who wrote the play?", "The colour of the sky is", "The capital of Italy is"]


@pytest.fixture
def memoir(tiny_llama, tiny_tokenizer):
    tiny_tokenizer.chat_template = TEMPLATE
    return Memoir.attach(tiny_llama, tiny_tokenizer, MemoirConfig(routing="early", routing_block=1, tau=0.6, k=14))


def rows(memoir, edit, others=OTHERS):
    return code_rows(memoir.model, memoir.layer, memoir.tokenizer, edit, others)


def route(memoir, prompt):
    memoir.model(memoir.tokenizer(prompt, return_tensors="pt").input_ids)
    return memoir.last_routes[0].edit_id


def test_both_forms_of_a_prompt(memoir):
    code, tokenizer = memoir.layer.code, memoir.tokenizer
    plain, chat = forms(tokenizer, code, FACT.prompt)
    assert plain == FACT.prompt and chat == "USER: The capital of France is ASSISTANT:"
    assert forms(tokenizer, code, chat) == [chat, plain] and bare(tokenizer, code, chat) == bare(tokenizer, code, plain)
    code.opened = []
    assert forms(tokenizer, code, plain) == [plain]


def test_a_row_per_form_and_paraphrase(memoir):
    made = rows(memoir, Edit(FACT.prompt, "Lyon", paraphrases=["France has the capital", "What is the capital?"]))
    assert made.codes.shape == (6, 48) and made.min_overlap.shape == made.room.shape == (6,)
    assert made.codes.dtype == made.min_overlap.dtype == made.room.dtype == torch.int32
    assert (made.min_overlap >= memoir.layer.codes.least).all()


def test_a_paraphrase_that_is_given_is_found(memoir):
    text = "A camel lives in the old town?"
    memoir.edit(FACT)
    assert route(memoir, text) == -1
    memoir.edit(Edit(FACT.prompt, "Lyon", paraphrases=[text]))
    assert route(memoir, text) == 0 and len(memoir.edits) == 1


def test_a_prompt_that_is_kept_raises_the_threshold(memoir):
    near = "The capital of Italy is"
    assert (
        rows(memoir, FACT, []).min_overlap.max()
        <= rows(memoir, Edit(FACT.prompt, "Lyon", keep=[near]), []).min_overlap.max()
    )
    memoir.layer.tau = 0.3
    kept = rows(memoir, Edit(FACT.prompt, "Lyon", keep=[near]), [])
    free = rows(memoir, FACT, [])
    assert near in kept.quiet or kept.min_overlap[0] > free.min_overlap[0] or free.min_overlap[0] == free.room[0]


def test_neighbours_ask_of_other_subjects(memoir):
    found = neighbours(memoir.tokenizer, memoir.layer.code, FACT.prompt, OTHERS)
    assert found and FACT.prompt not in found and len(set(found)) == len(found)
    assert neighbours(memoir.tokenizer, memoir.layer.code, FACT.prompt, OTHERS) == found
    assert neighbours(memoir.tokenizer, memoir.layer.code, FACT.prompt, [])  # of the background's subjects


def test_thresholds_grow_with_the_store_within_room(memoir):
    memoir.edit(FACT)
    store = memoir.layer.codes
    before = store.min_overlap[store.rows_of(0)].clone()
    room = store.room[store.rows_of(0)]
    memoir.edit("The capital of Italy is", "Nice")
    after = store.min_overlap[store.rows_of(0)]
    assert (after >= before).all() and (after <= torch.maximum(room, before)).all()
    assert route(memoir, FACT.prompt) == 0 and route(memoir, "The capital of Italy is") == 1


def test_reach_is_the_room_that_is_left(memoir):
    result = memoir.edit(FACT)
    store = memoir.layer.codes
    rows_ = store.rows_of(0)
    left = (store.room[rows_] - store.min_overlap[rows_]).min().item() / store.k
    assert result.reach == pytest.approx(left)
    memoir.detach()
    paper = Memoir.attach(memoir.model, memoir.tokenizer, MemoirConfig(k=14, routing="paper"))
    assert paper.edit(FACT).reach is None


@pytest.mark.parametrize(
    ("further", "text"),
    [
        ({"keep": ["prompt"]}, "cannot change and keep"),
        ({"paraphrases": ["a"], "keep": ["b", "a"]}, "cannot change and keep"),
        ({"paraphrases": [""]}, "list of texts that are not empty"),
        ({"keep": "text"}, "list of texts that are not empty"),
        ({"paraphrases": [3]}, "list of texts that are not empty"),
    ],
)
def test_what_an_edit_cannot_ask_for(further, text):
    with pytest.raises(ValueError, match=text):
        Edit("prompt", "target", **further)
    assert Edit("prompt", "target", paraphrases=["a", "a"]).paraphrases == ("a",)
