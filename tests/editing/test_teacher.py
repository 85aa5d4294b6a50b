"""`Teacher` over pages: where edits are written, what is read again for it, and that each is whole."""

import dataclasses

import pytest
import torch

from memoir_fast import RECIPES, Memoir, MemoirConfig
from memoir_fast.core import reads
from memoir_fast.editing import fast, teacher
from memoir_fast.io.renewal import Renewed

FACTS = [(f"The number {number} is", ["Rome", "camel", "Greek"][number % 3]) for number in range(8)]
RECIPE = dataclasses.replace(RECIPES["fast"], prefixes=0, rewordings=0, questions=0, steps=3)


@pytest.fixture
def attach(tiny_llama, tiny_tokenizer):
    def make(**options):
        config = MemoirConfig(recipe=RECIPE, tau=0.9, k=16, background=8, **{"page_edits": 2, **options})
        return Memoir.attach(tiny_llama, tiny_tokenizer, config)

    return make


def _lives(memoir):
    return memoir.layer.store.page[: len(memoir.layer.store)].tolist()


def test_an_edit_changes_its_own_page_alone(attach):
    memoir = attach()
    for number, fact in enumerate(FACTS[:5]):
        before = [memoir.layer.memory.page(page).clone() for page in memoir.layer.memory.numbers]
        memoir.edit(*fact)
        own = number // 2
        assert _lives(memoir)[-1] == own
        changed = [not torch.equal(memoir.layer.memory.page(page), one) for page, one in enumerate(before)]
        assert changed == [page == own for page in range(len(before))]
        rows = memoir.layer.memory.page(own).any(dim=1).nonzero().flatten().tolist()
        columns = {column for edit in memoir.layer.store.on_page(own) for column in _columns(memoir, edit, own)}
        assert set(rows) <= columns
    assert memoir.status().pages == 3 and memoir.status().memory_bytes == 3 * 48 * 32 * 4


def _columns(memoir, edit, page):
    return (memoir.layer.store.columns[edit] - page * 48).tolist()


def test_with_a_page_of_its_own_an_edit_is_as_if_it_were_alone(attach):
    """Each is learned, and answers, to the last bit as the only edit of a memory does."""
    memoir = attach(page_edits=1)
    memoir.edit(FACTS[:3], progress=False)
    ids = [memoir.tokenizer(prompt, return_tensors="pt").input_ids for prompt, _ in FACTS[:3]]
    with torch.no_grad():
        together = [memoir.model(one).logits for one in ids]
    model = memoir.detach()
    for fact, one, found in zip(FACTS, ids, together, strict=False):
        alone = Memoir.attach(model, memoir.tokenizer, memoir.config)
        alone.prefixes = memoir.prefixes
        alone.edit(*fact)
        with torch.no_grad():
            assert torch.equal(alone.model(one).logits, found) and alone.last_routes[0].edit_id == 0
        alone.detach()


def test_a_batch_ends_where_a_page_is_full(attach, monkeypatch):
    memoir, learn, together = attach(page_edits=3), fast.learn, []

    def noted(context, wanted, recipe, page):
        together.append((page, [one.edit.prompt for one in wanted]))
        return learn(context, wanted, recipe, page)

    monkeypatch.setattr(fast, "learn", noted)
    memoir.edit(FACTS, batch=4, progress=False)
    prompts = [prompt for prompt, _ in FACTS]
    assert together == [(0, prompts[:3]), (1, prompts[3:4]), (1, prompts[4:6]), (2, prompts[6:])]
    together.clear()
    memoir.edit([(prompt, "Rome") for prompt in (prompts[4], prompts[5], prompts[0], "new")], batch=4, progress=False)
    assert together == [(1, prompts[4:6]), (0, prompts[:1]), (2, ["new"])], "where they live, and the new where is room"
    assert _lives(memoir) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


@pytest.fixture
def read(tiny_tokenizer, monkeypatch):
    """The prompts whose texts are read once more."""
    inputs_of, found = teacher.inputs_of, []

    def noted(context, rows):
        found.extend(tiny_tokenizer.decode(row.ids[: row.prompt]) for row in rows)
        return inputs_of(context, rows)

    monkeypatch.setattr(teacher, "inputs_of", noted)
    return found


def test_a_loaded_memory_reads_again_only_the_texts_of_pages_that_were_full(attach, tiny_tokenizer, tmp_path, read):
    memoir = attach()
    memoir.edit(FACTS[:5], progress=False)
    memoir.save_pretrained(tmp_path)
    memoir = Memoir.from_pretrained(memoir.detach(), tiny_tokenizer, tmp_path)
    assert list(memoir.edits.reads) == [4]
    memoir.edit("The river is", "wide")
    assert read == [] and _lives(memoir)[-1] == 2 and not memoir.edits.reads, "page 2 is full now"
    memoir.edit(FACTS[0][0], "wide")
    assert read == [FACTS[0][0], FACTS[1][0], FACTS[0][0]], "those of page 0, and the one that goes once more"


def test_what_a_memory_learns_after_a_load_is_what_it_would_have_learned_anyhow(attach, tiny_tokenizer, tmp_path, read):
    """To the last bit, also where some edits are in the journal."""
    memoir = attach(page_edits=20)
    memoir.edit(FACTS[:4], progress=False)
    memoir.edit(FACTS[4:], progress=False)
    weight = memoir.layer.memory.weight.clone()
    with Memoir.open(memoir.detach(), tiny_tokenizer, tmp_path, memoir.config) as first:
        first.prefixes = memoir.prefixes
        first.edit(FACTS[:3], progress=False)
        first.save_pretrained(tmp_path)
        first.edit(*FACTS[3])
    loaded = Memoir.from_pretrained(first.detach(), tiny_tokenizer, tmp_path)
    assert len(loaded.edits.reads) == 4
    loaded.edit(FACTS[4:], progress=False)
    assert torch.equal(loaded.layer.memory.weight, weight) and not read
    loaded.detach()


def test_a_deleted_edit_is_taken_out_without_its_text(attach, tiny_tokenizer, tmp_path, read):
    memoir = attach(page_edits=20)
    memoir.edit(FACTS[:3], progress=False)
    memoir.delete(1)
    memoir.edit(FACTS[0][0], "wide")
    memoir.edit(*FACTS[4])
    assert not read and sorted(memoir.edits.reads) == [0, 2, 3]
    expected = torch.zeros(48, 48)
    for edit_id, one in memoir.edits.reads.items():
        own, inputs = memoir.layer.store.columns[edit_id].long(), one.inputs[1:].float()
        expected[own[:, None], own] += inputs.mT @ inputs
    torch.testing.assert_close(memoir._context.interference.of(0)[0]._moments, expected, rtol=1e-4, atol=1e-3)


def test_long_prompts_are_read_again_and_so_are_those_of_folders_that_keep_nothing(
    attach, tiny_tokenizer, tmp_path, monkeypatch, read
):
    monkeypatch.setattr(reads, "_LEAST", 15)
    memoir, long = attach(page_edits=20), "The number of the last house in this street is"
    memoir.edit([FACTS[0], (long, "Rome")], progress=False)
    assert [len(one.inputs) <= 15 for one in memoir.edits.reads.values()] == [True]
    memoir.save_pretrained(tmp_path)
    memoir = Memoir.from_pretrained(memoir.detach(), tiny_tokenizer, tmp_path)
    memoir.edit(*FACTS[1])
    assert read == [long] and list(memoir.edits.reads) == [0, 2]
    memoir._renewed(Renewed())
    memoir.edits._counted, memoir.edits.reads = {}, {}
    memoir.edit(*FACTS[2])
    assert read[1:] == [FACTS[0][0], long, FACTS[1][0]] and list(memoir.edits.reads) == [0, 2, 3]


def test_pages_that_were_learned_on_long_ago_are_forgotten_and_counted_again(attach, monkeypatch):
    monkeypatch.setattr("memoir_fast.editing.interference._MOST_BYTES", 4 * 48 * 48 * 2)
    memoir = attach()
    memoir.edit(FACTS[:7], progress=False)
    assert list(memoir._context.interference._pages) == [2, 3], "a page more, until the next edit"
    moments = memoir._context.interference.of(2)[0]._moments.clone()
    memoir.edit(FACTS[7][0], "Rome")
    memoir.edit(FACTS[0][0], "wide")
    assert list(memoir._context.interference._pages) == [3, 0]
    memoir.edit(FACTS[4][0], FACTS[4][1])
    found = memoir._context.interference.of(2)[0]._moments
    torch.testing.assert_close(found, moments, rtol=1e-3, atol=1e-3 * float(moments.max()))


def test_where_writing_fails_all_pages_are_as_before(attach, monkeypatch):
    memoir = attach()
    memoir.edit(FACTS[:2], progress=False)
    weight = memoir.layer.memory.weight.clone()
    monkeypatch.setattr(memoir.layer.store, "rest_after", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        memoir.edit(*FACTS[2])
    assert torch.equal(memoir.layer.memory.page(0), weight) and not memoir.layer.memory.weight[48:].any()
    assert _lives(memoir) == [0, 0] and memoir.edits.id_of(FACTS[2][0]) is None
    monkeypatch.undo()
    memoir.edit(*FACTS[2])
    assert _lives(memoir) == [0, 0, 1] and memoir.status().pages == 2, "the page that was opened is used"
