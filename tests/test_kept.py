"""Undo and reload: the memory is then, in every bit, one that is loaded from its folder, and who generates goes on."""

import copy
import dataclasses
import os
import shutil
import threading

import pytest
import torch
from cache_name import CACHE

from memoir_fast import RECIPES, Edit, Memoir, MemoirConfig, atomic
from memoir_fast.errors import CheckpointError, MemoirError
from memoir_fast.io import changes, checkpoint, durable, history, renewal

RECIPE = dataclasses.replace(RECIPES["fast"], prefixes=0, rewordings=0, questions=0, steps=3)
PROMPTS = [f"The number {number} is" for number in range(9)]
FACTS = [(prompt, ["Rome", "camel", "Greek"][number % 3]) for number, prompt in enumerate(PROMPTS)]


@pytest.fixture(params=["early", "paper"])
def config(request):
    return MemoirConfig(recipe=RECIPE, tau=0.9, k=16, background=8, page_edits=2, routing=request.param)


paper_alone = pytest.mark.parametrize("config", ["paper"], indirect=True)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "memory"


@pytest.fixture
def plain(tiny_llama):
    """A second model like the first, without a memory."""
    return copy.deepcopy(tiny_llama)


@pytest.fixture
def third(plain):
    """Another."""
    return copy.deepcopy(plain)


@pytest.fixture
def opened(plain, third, tiny_llama, tiny_tokenizer, folder, config):
    """Two edits in the snapshot; in the journal banks, a deletion, a replaced edit, a threshold, and pages opened."""
    with Memoir.open(tiny_llama, tiny_tokenizer, folder, config) as memoir:
        memoir.edit(FACTS[:2], progress=False)
        memoir.save_pretrained(folder)
        memoir.edit(Edit(*FACTS[2], bank="acme"))
        memoir.edit(FACTS[2][0], "Bob")
        memoir.delete(0)
        memoir.edit(FACTS[1][0], "Eve")
        memoir.calibrate(["What is it?"] * 20, 0.4)
        memoir.edit(Edit(*FACTS[4], paraphrases=("A paraphrase",), keep=("Leave me",), author="Jo"))
        yield memoir


def generated(memoir, bank=None, prompts=(*PROMPTS[:5], PROMPTS[7], "Who wrote the play?")):
    """What is said after each prompt, and by which edit."""
    found = []
    for prompt in prompts:
        ids = memoir.tokenizer(prompt, return_tensors="pt").input_ids
        said = memoir.model.generate(ids, max_new_tokens=2, do_sample=False, memoir_banks=bank)
        found.append((said.tolist(), memoir.last_routes))
    return found


def state(memoir):
    """All that a memory holds: masks, codes, thresholds, banks, pages and their numbers, texts and times."""
    layer = memoir.layer
    rows = len(layer.store)
    tensors = {name: one[:rows] for name, one in layer.store.named_buffers() if name != "count"}
    if layer.codes is not None:
        own = len(layer.codes)
        tensors |= {f"code {name}": one[:own] for name, one in layer.codes.named_buffers() if name != "count"}
    tensors["weight"] = layer.memory.weight
    values = {
        "edits": {one: dataclasses.astuple(edit) for one, edit in memoir.edits.items()},
        "ids": [memoir.edits.id_of(edit.prompt, edit.bank) for edit in memoir.edits.values()],
        "pages": layer.memory.numbers,
        "banks": layer.store.bank_numbers,
        "live": layer.store.live,
        "tau": layer.tau,
        "prefixes": memoir.prefixes,
        "calibration": memoir.calibration,
        "config": memoir.config,
        "rests": layer.store.rests,
    }
    if memoir.background is not None:
        tensors["background"] = memoir.background
    return {**{name: tensor.tolist() for name, tensor in tensors.items()}, **values}


def fresh(plain, tokenizer, folder):
    """As `found`, of a memory that is loaded anew."""
    memoir = Memoir.from_pretrained(plain, tokenizer, folder, check=False)
    memoir.config = memoir.config.replace(check=True)
    now = found(memoir)
    memoir.detach()
    return now


def found(memoir):
    """State and answers."""
    return state(memoir), generated(memoir), generated(memoir, "acme", PROMPTS[2:3])


def test_undone_it_is_as_one_that_is_loaded(opened, plain, tiny_tokenizer, folder):
    for n in (1, 1, 2):
        opened.undo(n)
        assert found(opened) == fresh(plain, tiny_tokenizer, folder)
        assert dict(opened.edits) == durable.current_edits(folder)[1]
    opened.edit(*FACTS[7])  # it goes on, on the right pages and with the right numbers
    opened.edit(*FACTS[8])
    opened.delete(1)
    assert found(opened) == fresh(plain, tiny_tokenizer, folder)


def test_undo_says_what_is_another_now_and_the_log_what_was(opened, folder):
    assert opened.undo() == renewal.Renewed(deleted=[4])
    assert opened.undo(3) == renewal.Renewed(added=[0], changed=[1])
    assert opened.edits[0].target == "Rome"
    with pytest.raises(MemoirError, match=r"3 changes were to be taken back, the journal .* has 2: what came before"):
        opened.undo(3)
    for n in (0, True, 1.5):
        with pytest.raises(ValueError, match="n must be a whole number of at least 1"):
            opened.undo(n)
    assert opened.undo(2) == renewal.Renewed(deleted=[2, 3])
    opened.edit("The sky is", "green")
    told = list(history.happened(history.History(folder), durable.read_pair(folder)[1]))
    edits, undos = ["edit", "edit"], ["undo", "undo", "undo", "edit"]
    assert [line["kind"] for line in told] == [
        *edits, "edit-in-bank", "edit", "delete", "edit", "calibration", "edit", *undos
    ]  # fmt: skip
    assert [line["count"] for line in told[-4:-1]] == [1, 3, 2]
    assert told[-4]["undone"][0]["author"] == "Jo" and told[-3]["undone"][0]["ids"] == [0]
    opened.save_pretrained(folder)
    assert list(history.happened(history.History(folder), None)) == told
    with pytest.raises(MemoirError, match="has 0"):
        opened.undo()


@pytest.mark.parametrize("config", ["early"], indirect=True)  # of masks, some of these prompts have the same
def test_who_generates_goes_on_and_who_has_a_cache_follows_no_edit_that_took_the_number(opened, tiny_tokenizer):
    ids = tiny_tokenizer(FACTS[4][0], return_tensors="pt").input_ids
    model, layer = opened.model, opened.layer
    with opened.banks("acme"):
        before = model.generate(ids, max_new_tokens=6, do_sample=False)
    said = []

    class Undoing:
        def put(self, value):
            if not said:
                opened.undo(3)
            said.append(value)

        def end(self):
            pass

    cache = model(ids, use_cache=True)[CACHE]
    assert opened.followed(cache) == [4]
    with opened.banks("acme"):
        during = model.generate(ids, max_new_tokens=6, do_sample=False, streamer=Undoing())
    assert torch.equal(before, during) and 4 not in opened.edits
    assert opened.edit(*FACTS[8]).edit_id == 4
    assert opened.followed(cache) == [-1]
    with torch.no_grad():
        after = model(ids[:, -1:], **{CACHE: cache}, use_cache=True).logits
        with opened.disabled():
            other = model(ids, use_cache=True)[CACHE]
            assert opened.followed(other) == [-1]
    assert after.isfinite().all() and not layer.views.outdated


def test_a_cache_follows_on_what_is_still_there(opened, tiny_tokenizer):
    ids = tiny_tokenizer(FACTS[2][0], return_tensors="pt").input_ids
    cache = opened.model(ids, use_cache=True)[CACHE]
    assert opened.followed(cache) == [3]
    for _ in range(12):  # more often than is remembered
        opened.edit("The sky is", "green")
        opened.undo()
    assert opened.followed(cache) == [3]
    opened.undo(5)
    assert opened.edit("The sky is", "green").edit_id == 3
    assert opened.followed(cache) == [-1]


@pytest.mark.parametrize("config", ["early"], indirect=True)
def test_reload_takes_over_what_another_wrote(opened, plain, third, tiny_tokenizer, folder):
    reader = Memoir.from_pretrained(plain, tiny_tokenizer, folder)
    assert reader.reload() == opened.reload() == renewal.Renewed()
    opened.edit(*FACTS[6])
    opened.delete(1)
    assert reader.reload() == renewal.Renewed(added=[5], deleted=[1])
    assert found(reader) == fresh(third, tiny_tokenizer, folder) and generated(reader) == generated(opened)
    opened.edit(FACTS[6][0], "Bob")
    opened.undo(2)
    assert reader.reload() == renewal.Renewed(added=[1])
    opened.save_pretrained(folder)
    assert reader.reload() == renewal.Renewed()
    assert found(reader) == fresh(third, tiny_tokenizer, folder) and generated(reader) == generated(opened)
    opened.edit("The sky is", "green")
    reader.reload()
    assert found(reader) == fresh(third, tiny_tokenizer, folder) and generated(reader) == generated(opened)


@paper_alone
def test_what_cannot_be_taken_over_changes_nothing(opened, plain, tiny_tokenizer, folder, tmp_path, config):
    reader = Memoir.from_pretrained(plain, tiny_tokenizer, folder)
    opened.edit("The sky is", "green")
    opened.close()
    before = found(reader)
    shutil.copytree(folder, tmp_path / "whole")
    (journal,) = folder.glob("journal-*")
    content = bytearray(journal.read_bytes())
    content[len(content) // 2] ^= 1
    journal.write_bytes(content)
    with pytest.raises(CheckpointError, match="journal"):
        reader.reload()
    assert found(reader) == before
    shutil.rmtree(folder)
    with pytest.raises(CheckpointError):
        reader.reload()
    model = opened.detach()
    Memoir.attach(model, tiny_tokenizer, config.replace(k=14)).save_pretrained(folder)
    with pytest.raises(MemoirError, match="holds another memory than it did .*k"):
        reader.reload()
    assert found(reader) == before
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "whole", folder)
    assert reader.reload().added == [5]
    reader.edit("The river is", "wide")
    with pytest.raises(MemoirError, match=r"was changed since it was loaded from .*reload\(discard=True\)"):
        reader.reload()
    assert reader.reload(discard=True).deleted == [6]
    reader.delete(5)
    reader.save_pretrained(folder)
    assert reader.reload() == renewal.Renewed()
    reader.detach()
    with pytest.raises(MemoirError, match="from a local folder"):
        reader.reload()
    with pytest.raises(MemoirError, match="Memoir.open"):
        reader.undo()


def test_an_interrupt_while_it_takes_over_leaves_the_old_one(opened, monkeypatch):
    before = found(opened)
    other = renewal.beside(opened, durable.read_pair(opened._durable.folder)[0], [])
    other.tau = 0.5
    monkeypatch.setattr(renewal, "_OF_MEMOIR", ("prefixes", "tau"))  # which cannot be set: as good as an interrupt
    with pytest.raises(AttributeError):
        renewal.take_over(opened, other)
    assert found(opened) == before


@paper_alone
@pytest.mark.parametrize("call", [0, 2, 3, 4, 5])
def test_a_full_disk_undoes_all_or_nothing(opened, plain, tiny_tokenizer, folder, monkeypatch, call):
    before, calls = found(opened), []

    def full(descriptor, sync=os.fsync):
        calls.append(descriptor)
        if len(calls) == call + 1:
            raise OSError(28, os.strerror(28))
        sync(descriptor)

    failed = False
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        try:
            opened.undo(2)
        except CheckpointError as error:
            failed = True
            named = "power cut" in str(error) or "cannot be opened" in str(error)
    if failed and not named:
        assert found(opened) == before == fresh(plain, tiny_tokenizer, folder)
        opened.undo(2)
    opened.close()
    assert len(durable.current_edits(folder)[1]) == 3
    assert found(opened) == fresh(plain, tiny_tokenizer, folder), "also where its error came behind the move"


@paper_alone
def test_an_undone_record_does_nothing_when_it_is_replayed(opened, folder):
    opened.undo(2)
    (last,) = [one for one in durable.read_pair(folder)[1] if one.kind == "undo"]
    before = found(opened)
    changes.apply(opened, last)
    assert found(opened) == before


@paper_alone
def test_what_is_learned_afterwards_is_what_a_loaded_memory_learns(opened, plain, tiny_tokenizer, folder, tmp_path):
    """What other edits read, which a new one makes room for, is counted anew."""
    opened.undo(3)
    shutil.copytree(folder, tmp_path / "other")
    with Memoir.open(plain, tiny_tokenizer, tmp_path / "other") as other:
        for memoir in (opened, other):
            memoir.edit([FACTS[7], FACTS[1], FACTS[8]], progress=False)
        names = ("masks", "page", "weight", "live", "tau")
        assert [state(opened)[name] for name in names] == [state(other)[name] for name in names]


@paper_alone
def test_beside_threads_that_generate_each_answer_is_of_before_or_after(opened, tiny_tokenizer):
    ids = tiny_tokenizer("Is there a river?", return_tensors="pt").input_ids

    def said():
        asked = {"max_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
        return torch.stack(opened.model.generate(ids, **asked).logits)

    valid, found, over = [said()], [], threading.Event()

    def generate():
        while not over.is_set():
            found.append(said())

    threads = [threading.Thread(target=generate) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(6):
        opened.edit("Is there a river?", "Rome")
        valid.append(said())
        opened.undo()
    over.set()
    for thread in threads:
        thread.join()
    assert torch.equal(said(), valid[0]) and not torch.equal(valid[1], valid[0])
    assert len(found) > 6 and all(any(torch.equal(one, other) for other in valid) for one in found)


@paper_alone
def test_pages_have_the_numbers_of_the_files_again(opened, plain, tiny_tokenizer, folder):
    """Copies for a generation take places between pages; a memory that was read anew has none of these."""
    with opened.layer.views.generation():
        opened.edit([FACTS[1], FACTS[3], FACTS[5], FACTS[6], FACTS[8]], progress=False)
    assert opened.layer.memory.numbers != list(range(len(opened.layer.memory.numbers)))
    opened.undo(2)
    assert found(opened) == fresh(plain, tiny_tokenizer, folder)
    opened.edit([FACTS[7], FACTS[8], ("The sky is", "green")], progress=False)
    assert found(opened) == fresh(plain, tiny_tokenizer, folder)


@paper_alone
def test_what_others_wrote_is_not_saved_over(opened, plain, tiny_tokenizer, folder, tmp_path, monkeypatch):
    reader = Memoir.from_pretrained(plain, tiny_tokenizer, folder)
    reader.edit("The sky is", "green")
    opened.edit(*FACTS[6])
    opened.close()
    before = {path.name: path.read_bytes() for path in folder.glob("*-*")}
    with pytest.raises(MemoirError, match="others have written to .* since this memory was loaded from it"):
        reader.save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.glob("*-*")} == before
    reader.save_pretrained(tmp_path / "elsewhere")
    reader.reload(discard=True)
    reader.edit("The sky is", "green")

    settings = checkpoint.checksum_of(folder)

    def fails(descriptor, sync=atomic._sync):
        sync(descriptor)
        if checkpoint.checksum_of(folder) != settings:  # past the commit
            raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "_sync", fails)
        with pytest.raises(CheckpointError, match="cannot be saved"):
            reader.save_pretrained(folder)
    reader.save_pretrained(folder)
    said = found(reader)[1:]
    assert durable.current_edits(folder)[1] == dict(reader.edits)
    assert said == fresh(reader.detach(), tiny_tokenizer, folder)[1:]
