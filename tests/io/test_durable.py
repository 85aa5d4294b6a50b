"""`Memoir.open`: what was acknowledged is there after a crash."""

import dataclasses

import pytest
import torch

from memoir_fast import RECIPES, Edit, Memoir, MemoirConfig, atomic
from memoir_fast.errors import CheckpointError, LockedError, MemoirError
from memoir_fast.io import checkpoint, durable
from memoir_fast.io.journal import journal_path, read
from memoir_fast.modules.code_store import CodeStore

RECIPE = dataclasses.replace(RECIPES["fast"], prefixes=0, rewordings=0, questions=0, steps=3)
PROMPTS = [f"The number {number} is" for number in range(8)]
FACTS = [(prompt, ["Rome", "camel", "Greek"][number % 3]) for number, prompt in enumerate(PROMPTS)]
ASKED = [*PROMPTS, "Who wrote the play?"]


@pytest.fixture(params=["early", "paper"])
def config(request):
    return MemoirConfig(recipe=RECIPE, tau=0.9, k=16, background=8, page_edits=2, routing=request.param)


@pytest.fixture
def opened(tiny_llama, tiny_tokenizer, tmp_path):
    """Opens the folder on the same model, after letting go of whoever has it open."""
    state = {}

    def open_it(config=None):
        if "memoir" in state:
            state["memoir"].detach()
        state["memoir"] = Memoir.open(tiny_llama, tiny_tokenizer, tmp_path / "memory", config)
        return state["memoir"]

    yield open_it
    if "memoir" in state:
        state["memoir"].close()


def state(memoir):
    """Edits, where each prompt goes and what it is answered."""
    found = [dict(memoir.edits), memoir.tau]
    for prompt in ASKED:
        with torch.no_grad():
            logits = memoir.model(memoir.tokenizer(prompt, return_tensors="pt").input_ids).logits
        found += [memoir.last_routes, logits]
    return found


def same(one, other):
    pairs = zip(one, other, strict=True)
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


def test_all_that_happened_is_there_again(opened, config):
    memoir = opened(config)
    memoir.edit(FACTS[:5], progress=False)
    memoir.delete(1)
    memoir.edit(FACTS[0][0], "Bob")
    memoir.edit(Edit(*FACTS[5], paraphrases=("A paraphrase",), keep=("Leave me",)))
    memoir.calibrate(["What is it?"] * 20, 0.4)
    memoir.edit(*FACTS[6])
    before = state(memoir)
    again = opened()
    assert same(state(again), before) and len(again.edits) == 6
    again.edit(*FACTS[7])
    before = state(again)
    assert same(state(opened()), before)


def test_many_deletions_of_one_record_look_through_the_codes_once(opened, config, monkeypatch):
    memoir = opened(config.replace(routing="early"))
    memoir.edit([Edit(*fact, bank="acme") for fact in FACTS[:6]], progress=False)
    memoir.delete_bank("acme")
    looked = []

    def counted(store, *args, remove=CodeStore.remove):
        looked.append(args)
        remove(store, *args)

    monkeypatch.setattr(CodeStore, "remove", counted)
    assert len(opened().edits) == 0 and len(looked) == 1


def test_a_page_that_was_emptied_is_empty_again(opened, config):
    memoir = opened(config)
    memoir.edit(FACTS[:4], progress=False)
    memoir.delete(0)
    memoir.delete(1)
    memoir.edit(FACTS[4:6], progress=False)
    assert memoir.layer.store.page[:6].tolist() == [-1, -1, 1, 1, 0, 0]
    before, page = state(memoir), memoir.layer.memory.page(0).clone()
    again = opened()
    assert same(state(again), before) and torch.equal(again.layer.memory.page(0), page)


def test_a_snapshot_takes_the_journal_s_place(opened, config, tmp_path, monkeypatch):
    memoir = opened(config)
    folder = tmp_path / "memory"
    memoir.edit(FACTS[:3], progress=False)
    first = memoir._durable.journal.path
    memoir.delete(0)
    memoir.delete(1)
    memoir.save_pretrained(folder)
    assert not first.exists() and memoir._durable.journal.sequence == 0
    memoir.edit(FACTS[3:5], progress=False)
    before = state(memoir)
    monkeypatch.setattr(durable, "_LEAST_SNAPSHOT", 0)
    monkeypatch.setattr(memoir._durable, "_snapshot_bytes", 0)
    assert same(state(opened()), before)
    monkeypatch.setattr(durable, "_size", lambda _: 0)
    memoir = opened()
    memoir.edit(*FACTS[5])
    assert memoir._durable.journal.sequence == 0, "the journal had outgrown the snapshot"
    before = state(memoir)
    assert same(state(opened()), before)
    assert sorted(path.name.split("-")[0] for path in folder.iterdir()) == [
        "edits", "history.jsonl", "journal", "memory", "memory_config.json", "writer.lock",
    ]  # fmt: skip


def test_others_read_while_one_writes_and_nobody_else_writes(opened, config, tiny_tokenizer, tmp_path):
    from copy import deepcopy

    memoir = opened(config)
    plain = deepcopy(memoir).detach()
    memoir.edit(FACTS[:2], progress=False)
    reader = Memoir.from_pretrained(plain, tiny_tokenizer, tmp_path / "memory")
    assert same(state(reader), state(memoir))
    with pytest.raises(LockedError, match="is being written by this very process"):
        reader.save_pretrained(tmp_path / "memory")
    reader.detach()
    with pytest.raises(LockedError):
        Memoir.open(plain, tiny_tokenizer, tmp_path / "memory")
    with pytest.raises(MemoirError, match="has 2 records that its snapshot lacks"):
        memoir.merge(tmp_path / "memory")
    memoir.close()
    memoir.edit(*FACTS[2])
    assert len(durable.current_edits(tmp_path / "memory")[1]) == 2, "a memory that was closed writes nowhere"
    with pytest.raises(ValueError, match="holds a memory, which has its own settings"):
        Memoir.open(plain, tiny_tokenizer, tmp_path / "memory", config)
    with Memoir.open(plain, tiny_tokenizer, tmp_path / "memory") as other:
        assert len(other.edits) == 2
    reader = Memoir.from_pretrained(other.detach(), tiny_tokenizer, tmp_path / "memory")
    reader.save_pretrained(tmp_path / "memory")


def test_a_memory_that_came_while_another_was_begun_stays(opened, config, tiny_llama, tiny_tokenizer, monkeypatch):
    memoir = opened(config)
    memoir.edit(*FACTS[0])
    folder, model = memoir._durable.folder, memoir.detach()
    with monkeypatch.context() as patched:
        patched.setattr(durable, "holds", lambda *_: False)  # it was not there when that was looked at
        with pytest.raises(CheckpointError, match="holds a memory now, which others have saved there meanwhile"):
            Memoir.open(model, tiny_tokenizer, folder, config)
    assert len(opened().edits) == 1


def test_what_cannot_be_put_down_does_not_happen(opened, config, monkeypatch):
    memoir = opened(config)
    memoir.edit(FACTS[:2], progress=False)
    before, weight = state(memoir), memoir.layer.memory.weight.clone()

    def full(*_):
        raise CheckpointError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(memoir._durable.journal, "append_all", full)
        patch.setattr(memoir._durable.journal, "append", full)
        for change in (
            lambda: memoir.edit(*FACTS[2]),
            lambda: memoir.edit(FACTS[0][0], "Bob"),
            lambda: memoir.delete(0),
            lambda: memoir.calibrate(["What is it?", "Where is the mountain?"] * 10, 0.4),
        ):
            with pytest.raises(CheckpointError, match="no room"):
                change()
            assert same(state(memoir), before)
    assert torch.equal(memoir.layer.memory.page(0), weight)
    memoir.edit(*FACTS[2])
    before = state(memoir)
    assert same(state(opened()), before)


@pytest.mark.parametrize("fault", ["in a pass", "no memory", "interrupt"])
def test_a_deletion_that_is_not_made_is_not_put_down(opened, config, monkeypatch, fault):
    memoir = opened(config)
    memoir.edit([Edit(*FACTS[0], bank="acme"), Edit(*FACTS[1])], progress=False)
    before, errors = state(memoir), []

    def delete():
        for change in (lambda: memoir.delete(0), lambda: memoir.delete_bank("acme")):
            with pytest.raises((MemoirError, MemoryError, KeyboardInterrupt)) as error:
                change()
            errors.append(error.type)

    def fails(*_, **__):
        raise MemoryError if fault == "no memory" else KeyboardInterrupt

    if fault == "in a pass":
        with memoir.layer.turns.reading():
            delete()
    else:  # while it waits for passes, or copies what generations read
        with monkeypatch.context() as patch:
            patch.setattr(memoir.layer.views, "keep", fails)
            delete()
    assert len(set(errors)) == 1 and len(errors) == 2
    assert same(state(memoir), before)
    memoir.edit(*FACTS[2])
    before = state(memoir)
    assert same(state(opened()), before) and sorted(opened().edits) == [0, 1, 2]


@pytest.mark.parametrize("prompt", [FACTS[2][0], FACTS[0][0]], ids=["new", "taught again"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_edit_that_is_broken_off_behind_its_record_is_not_in_the_journal(opened, config, monkeypatch, error, prompt):
    memoir = opened(config)
    memoir.edit(FACTS[:2], progress=False)
    before, size = state(memoir), memoir._durable.journal.size

    def interrupted(written):
        edited(written)
        assert memoir._durable.journal.size > size
        raise error

    edited = memoir._durable.edited
    with monkeypatch.context() as patch:
        patch.setattr(memoir._durable, "edited", interrupted)
        with pytest.raises(error):
            memoir.edit(prompt, "Bob")
    assert memoir._durable.journal.size == size and same(state(memoir), before)
    assert [one.values["prompt"] for one in read(memoir._durable.journal.path)] == PROMPTS[:2]
    memoir.edit(*FACTS[3])
    before = state(memoir)
    assert same(state(opened()), before)


def test_a_record_that_does_not_fit_is_refused(opened, config, tmp_path):
    memoir = opened(config)
    memoir.edit(*FACTS[0])
    memoir._durable.journal.append("delete", {"ids": [5]})
    with pytest.raises(CheckpointError, match="record 2 of the journal does not fit the memory"):
        opened()
    memoir.close()
    model, tokenizer = memoir.detach(), memoir.tokenizer
    lines = journal_path(tmp_path / "memory", checkpoint.checksum_of(tmp_path / "memory"))
    assert lines.exists()
    with pytest.raises(CheckpointError, match="record 2 of the journal does not fit"):
        Memoir.from_pretrained(model, tokenizer, tmp_path / "memory")


def test_a_record_whose_mask_has_other_bits_is_refused(opened, config):
    memoir = opened(config)
    memoir.edit(*FACTS[0])
    (record,) = read(memoir._durable.journal.path)
    record.tensors["mask"][0] ^= 1
    memoir._durable.journal.append("edit", {**record.values, "id": 1, "prompt": "another"}, record.tensors)
    with pytest.raises(CheckpointError, match="record 2 .* every mask must have k = 16 of 48 bits set"):
        opened()


def test_an_acknowledged_edit_costs_little_more_than_its_bytes(opened, config):
    memoir = opened(config)
    before = memoir._durable.journal.size
    memoir.edit(*FACTS[0])
    own = 16 * 32 * 4  # k rows of O outputs in float32; at this tiny size, headers are most of the rest
    assert own < memoir._durable.journal.size - before < own + 3000


def test_a_snapshot_that_fails_when_it_is_in_place_is_followed_by_nothing(opened, config, tmp_path, monkeypatch):
    """What came next would go to a journal of a snapshot that is the folder's no more."""
    memoir = opened(config)
    memoir.edit(*FACTS[0])
    settings = checkpoint.checksum_of(tmp_path / "memory")

    def fails(descriptor, sync=atomic._sync):
        if checkpoint.checksum_of(tmp_path / "memory") != settings:
            raise OSError(5, "Input/output error")
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "_sync", fails)
        with pytest.raises(CheckpointError, match="cannot be saved"):
            memoir.save_pretrained(tmp_path / "memory")
    before = state(memoir)
    with pytest.raises(CheckpointError, match="a snapshot was broken off in the middle; open the memory again"):
        memoir.edit(*FACTS[1])
    assert same(state(memoir), before) and same(state(opened()), before)


def test_a_threshold_that_cannot_be_put_down_with_its_edit_is_not_in_force(opened, config, monkeypatch):
    """tau="auto": the 16th edit chooses one, and each row's own."""
    memoir = opened(config.replace(tau="auto", page_edits=20))
    memoir.edit([(f"What is {number}?", "Rome") for number in range(15)], progress=False)
    store, (before, least) = memoir.layer.searched, _thresholds(memoir)

    def full(*_):
        raise CheckpointError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(memoir._durable.journal, "append_all", full)
        with pytest.raises(CheckpointError, match="no room"):
            memoir.edit("What is it now?", "Rome")
        with pytest.raises(CheckpointError, match="no room"):
            memoir.edit("What is it now?", "Rome")
    assert _thresholds(memoir)[0] == before and torch.equal(store.min_overlap[: len(store)], least)
    memoir.edit("What is it now?", "Rome")
    assert memoir.calibration is not None and memoir.tau != before[0]
    (before, least), again = _thresholds(memoir), opened()
    store = again.layer.searched
    assert again.tau == before[0] and torch.equal(store.min_overlap[: len(store)], least)


def _thresholds(memoir):
    store = memoir.layer.searched
    return (memoir.tau, memoir.calibration), store.min_overlap[: len(store)].clone()


def test_an_edit_is_made_though_the_snapshot_behind_it_cannot_be(opened, config, monkeypatch, caplog):
    memoir = opened(config)
    tried = []

    def full(*_):
        tried.append(True)
        raise CheckpointError("no room")

    monkeypatch.setattr(durable, "_LEAST_SNAPSHOT", 0)
    monkeypatch.setattr(memoir._durable, "_snapshot_bytes", 0)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", full)
        memoir.edit(*FACTS[0])
        memoir.edit(*FACTS[1])
    assert len(tried) == 1 and "goes on without a new snapshot: no room" in caplog.text
    before = state(memoir)
    assert len(memoir.edits) == 2 and same(state(opened()), before)


def behind(call, error):
    """A function that does what `call` does, and then raises."""

    def stopped(*args):
        call(*args)
        raise error

    return stopped


@pytest.mark.parametrize("change", ["delete", "calibrate"])
def test_what_is_stopped_behind_its_record_is_as_the_folder_says(opened, config, monkeypatch, change):
    memoir = opened(config)
    memoir.edit(FACTS[:3], progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(memoir._durable.journal, "append", behind(memoir._durable.journal.append, KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            memoir.delete(0) if change == "delete" else memoir.calibrate(["What is it?"] * 20, 0.4)
    memoir.edit(FACTS[0][0], "Bob")
    before = state(memoir)
    assert same(state(opened()), before)


def test_a_snapshot_that_is_stopped_leaves_no_earlier_numbers_of_pages(opened, config, tmp_path, monkeypatch):
    """Else the next edit is put down on a page that the snapshot has not."""
    memoir = opened(config)
    memoir.edit(FACTS[:6], progress=False)
    for edit_id in range(4):
        memoir.delete(edit_id)
    memoir.compact(progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(durable.changes, "PageNumbers", behind(lambda _: None, KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            memoir.save_pretrained(tmp_path / "memory")
    memoir.edit(FACTS[5][0], "Bob")
    before = state(memoir)
    assert same(state(opened()), before)
