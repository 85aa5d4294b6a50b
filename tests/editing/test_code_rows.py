"""The rows and thresholds of an edit among others: forms, paraphrases, kept prompts, what grows with the store."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from memoir_fast import Edit, Memoir, MemoirConfig
from memoir_fast.editing.code_rows import bare, code_rows, forms, neighbours, require_weight
from memoir_fast.modules.code_store import kept_bits

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


@pytest.mark.parametrize("text", ["</s>", "<pad> </s>\n", "USER: ASSISTANT:", "USER: </s> ASSISTANT:"])
def test_a_prompt_that_says_nothing_is_refused(memoir, text):
    """Whatever says nothing has one code: any other such prompt would follow its edit."""
    for edit in (Edit(text, "Lyon"), Edit(FACT.prompt, "Lyon", paraphrases=[text])):
        with pytest.raises(ValueError, match="says nothing by which it could be told from others"):
            memoir.edit([FACT, edit], progress=False)
    assert len(memoir.edits) == 0


class Issued(TorchDispatchMode):
    """Counts operations."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_prompts_are_weighed_together(memoir):
    """A device is asked once, however many paraphrases there are; on the host, a prompt's ids are put beside others."""
    counts = []
    for texts in ([FACT.prompt], [FACT.prompt, *OTHERS, "USER: The sky ASSISTANT:"]):
        with Issued() as made:
            require_weight(memoir.tokenizer, memoir.layer.code, texts)
        counts.append(made.count)
    assert counts[1] - counts[0] <= 4 * len(OTHERS) + 4, counts


NEAR = "The capital of Italy is"
KEPT = Edit(FACT.prompt, "Lyon", keep=[NEAR])


def logits(memoir, prompt):
    with torch.no_grad():
        return memoir.model(memoir.tokenizer(prompt, return_tensors="pt").input_ids).logits


@pytest.mark.parametrize("template", ["plain", "chat"])
def test_a_prompt_that_is_kept_follows_nothing(memoir, template):
    """Though it matches the edit: it has a row of its own, in both forms, and the unedited output to the bit."""
    memoir.layer.tau = 0.3
    near = forms(memoir.tokenizer, memoir.layer.code, NEAR)[template == "chat"]
    with memoir.disabled():
        unedited = logits(memoir, near)
    memoir.edit(FACT)
    assert route(memoir, near) == 0
    memoir.edit(KEPT)
    assert route(memoir, near) == -1 and torch.equal(logits(memoir, near), unedited)
    assert all(route(memoir, one) == 0 for one in forms(memoir.tokenizer, memoir.layer.code, FACT.prompt))
    memoir.edit(FACT)  # it keeps nothing any more
    assert route(memoir, near) == 0
    memoir.edit(KEPT)
    memoir.delete(0)
    assert not memoir.layer.codes.live and not memoir.layer.codes.keeps


def test_a_prompt_that_is_kept_can_be_taught_all_the_same(memoir):
    memoir.layer.tau = 0.3
    memoir.edit(KEPT)
    other = memoir.edit(NEAR, "Nice").edit_id
    assert [route(memoir, one) for one in (FACT.prompt, NEAR)] == [0, other]
    for one in ("The capital of Italy, is", "Well: The capital of Italy is"):
        assert route(memoir, one) == other, "what is like both is nearer to what is taught"


def test_a_prompt_that_follows_another_edit_goes_on_to(memoir):
    """Kept is what it did, and an edit was what it followed."""
    memoir.layer.tau = 0.3
    memoir.edit(NEAR, "Nice")
    like = "The capital of Italy, is"
    assert route(memoir, like) == 0
    made = rows(memoir, Edit(FACT.prompt, "Lyon", keep=[like]), [])
    assert (made.room > 0).all() and len(made.codes) == 2
    memoir.edit(Edit(FACT.prompt, "Lyon", keep=[like]))
    assert route(memoir, like) == 0


def test_rows_of_prompts_that_are_kept(memoir):
    plain, made = rows(memoir, FACT, []), rows(memoir, KEPT, [])
    assert made.room.tolist()[:2] == plain.room.tolist() and made.room.tolist()[2:] == [0, 0]
    assert torch.equal(made.codes[:2], plain.codes) and torch.equal(made.min_overlap[:2], plain.min_overlap)
    assert made.spare == plain.spare and made.quiet == plain.quiet, "what follows no edit need not be learned"
    bits = [sum(bin(word & 0xFFFFFFFF).count("1") for word in row) for row in made.codes.tolist()]
    assert bits == [memoir.layer.codes.k] * 2 + [kept_bits(memoir.layer.codes.k)] * 2


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
