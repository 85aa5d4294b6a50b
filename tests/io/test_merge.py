"""Taking the edits of a saved memory into another."""

import copy
import dataclasses
import shutil
from contextlib import suppress

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from memoir_fast import RECIPES, Edit, Memoir, MemoirConfig
from memoir_fast.cli.commands.log import words
from memoir_fast.errors import CheckpointError, MemoirError, StoreFullError
from memoir_fast.io import checkpoint, durable, renewal
from memoir_fast.io.history import History, happened
from memoir_fast.io.merge import merge

RECIPE = dataclasses.replace(RECIPES["fast"], prefixes=0, rewordings=0, questions=0, steps=3)
OURS = [("The number one is", "Rome"), ("The number two is", "camel"), ("Who wrote the play?", "Bob")]
THEIRS = [("The river is", "wide"), OURS[1], ("Who wrote the play?", "Eve"), ("The sky is", "red")]


@pytest.fixture(params=["early", "paper"])
def folders(tiny_llama, tiny_tokenizer, tmp_path, request):
    """Two memories of one model, saved; their answers to their own prompts."""
    answers = []
    for name, facts in (("ours", OURS), ("theirs", THEIRS)):
        memoir = Memoir.attach(tiny_llama, tiny_tokenizer, _config(request.param))
        memoir.edit(facts, progress=False)
        memoir.save_pretrained(tmp_path / name)
        answers.append({prompt: _answer(memoir, prompt) for prompt, _ in facts})
        memoir.detach()
    return tmp_path, answers


def _config(routing, page_edits=2):
    return MemoirConfig(tau=0.9, k=16, background=8, page_edits=page_edits, routing=routing, recipe=RECIPE)


def _answer(memoir, prompt):
    with torch.no_grad():
        logits = memoir.model(memoir.tokenizer(prompt, return_tensors="pt").input_ids).logits
    return logits


def _ours(folders, model, tokenizer):
    return Memoir.from_pretrained(model, tokenizer, folders[0] / "ours")


def test_edits_come_with_their_pages_and_answer_as_they_did(folders, tiny_llama, tiny_tokenizer):
    memoir = _ours(folders, tiny_llama, tiny_tokenizer)
    found = memoir.merge(folders[0] / "theirs")
    assert found.added == [3, 2, 4] and found.same == [1], "the winner of a conflict has the id of the other"
    assert found.conflicts == [(Edit(*OURS[2]), Edit(*THEIRS[2]))]
    assert memoir.edits[2].target == "Eve" and len(memoir.edits) == 5 and memoir.status().pages == 4
    ours, theirs = folders[1]
    for prompt, logits in {**ours, **theirs, OURS[1][0]: ours[OURS[1][0]]}.items():
        assert torch.equal(_answer(memoir, prompt), logits), prompt
        assert memoir.last_routes[0].edit_id == memoir.edits.id_of(prompt)
    memoir.edit("One more", "Rome")
    assert len(memoir.edits) == 6


def test_a_memory_that_was_merged_before_is_the_same(folders, tiny_llama, tiny_tokenizer):
    memoir = _ours(folders, tiny_llama, tiny_tokenizer)
    memoir.merge(folders[0] / "theirs")
    assert memoir.merge(folders[0] / "theirs").same == [3, 1, 2, 4] and memoir.status().pages == 4


def test_this_memory_wins_where_it_is_preferred(folders, tiny_llama, tiny_tokenizer):
    memoir = _ours(folders, tiny_llama, tiny_tokenizer)
    found = memoir.merge(folders[0] / "theirs", prefer="this")
    assert found.added == [3, 4] and memoir.edits[2].target == "Bob"
    assert torch.equal(_answer(memoir, OURS[2][0]), folders[1][0][OURS[2][0]])


def test_what_was_merged_is_saved_and_loaded(folders, tiny_llama, tiny_tokenizer):
    memoir = _ours(folders, tiny_llama, tiny_tokenizer)
    memoir.merge(folders[0] / "theirs")
    answers = {edit.prompt: _answer(memoir, edit.prompt) for edit in memoir.edits.values()}
    memoir.save_pretrained(folders[0] / "both")
    loaded = Memoir.from_pretrained(memoir.detach(), tiny_tokenizer, folders[0] / "both")
    assert all(torch.equal(_answer(loaded, prompt), logits) for prompt, logits in answers.items())


@pytest.mark.parametrize(
    ("change", "error", "reason"),
    [
        ({"k": 12}, MemoirError, "k: 12 here, 16 there"),
        ({"seed": 1}, MemoirError, "permutation differs"),
        ({"max_edits": 2}, StoreFullError, "the store holds 0 of max_edits = 2, 4 more do not fit"),
        ({"max_pages": 2}, StoreFullError, "the memory has 1 of max_pages = 2, 2 more do not fit"),
        ({"layer": "model.layers.1.mlp.down_proj"}, MemoirError, "layer: model.layers.1"),
    ],
)
def test_what_cannot_be_merged_changes_nothing(folders, tiny_llama, tiny_tokenizer, change, error, reason):
    saved = Memoir.from_pretrained(tiny_llama, tiny_tokenizer, folders[0] / "theirs")
    config = saved.config.replace(**{"routing_block": None, **change})
    saved.detach()
    memoir = Memoir.attach(tiny_llama, tiny_tokenizer, config)
    with pytest.raises(error, match=reason):
        memoir.merge(folders[0] / "theirs")
    assert memoir.edits == {} and len(memoir.layer.store) == 0 and not memoir.layer.memory.weight.any()
    with pytest.raises(ValueError, match="prefer must be one of other, this, got 'newer'"):
        memoir.merge(folders[0] / "theirs", prefer="newer")


def test_only_new_prompts_need_room(folders, tiny_llama, tiny_tokenizer):
    memoir = Memoir.from_pretrained(tiny_llama, tiny_tokenizer, folders[0] / "ours")
    config = memoir.config.replace(max_edits=5)
    memoir.detach()
    memoir = Memoir.attach(tiny_llama, tiny_tokenizer, config)
    memoir.edit(OURS, progress=False)
    memoir.merge(folders[0] / "theirs")
    assert [edit.target for edit in memoir.edits.values()] == ["Rome", "camel", "Eve", "wide", "red"]


def test_a_winner_is_helped_for_as_long_as_it_was_there(folders, tiny_llama, tiny_tokenizer):
    """Not for as many tokens as the target had that was here."""
    memoir = Memoir.from_pretrained(tiny_llama, tiny_tokenizer, folders[0] / "theirs")
    memoir.edit(THEIRS, recipe=dataclasses.replace(RECIPE, rest=False), progress=False)
    assert not memoir.layer.store.target_tokens.any()
    memoir.layer.store.rests = False
    memoir.save_pretrained(folders[0] / "theirs")
    memoir.detach()
    memoir = _ours(folders, tiny_llama, tiny_tokenizer)
    memoir.merge(folders[0] / "theirs")
    tokens = memoir.layer.store.target_tokens[:5]
    assert tokens[:2].all() and not tokens[2:].any() and memoir.layer.store.rests


class _Looked(TorchDispatchMode):
    """Counts the numbers that operations are given and give."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        every = tree_leaves([args, kwargs or {}, found])
        self.numbers += sum(one.numel() for one in every if isinstance(one, torch.Tensor))
        return found


def test_its_cost_grows_with_the_edits_and_not_with_their_square(folders, tiny_llama, tiny_tokenizer):
    cost = []
    for edits in (150, 1200):
        memoir = Memoir.from_pretrained(tiny_llama, tiny_tokenizer, folders[0] / "theirs")
        layer, mask = memoir.layer, memoir.layer.store.masks[:1].clone()
        for page in range(edits // 50):
            first = layer.store.extend(mask.repeat(50, 1), page=layer.memory.open()).start
            layer.memory.page(page)[:] = 1
            if layer.codes is not None:
                every = torch.arange(first, first + 50, dtype=torch.int32)
                layer.codes.add(
                    every, layer.codes.codes[:1].repeat(50, 1), torch.full((50,), 900), torch.full((50,), 900)
                )
        more = {row: Edit(f"prompt {row}", "target") for row in range(4, len(layer.store))}
        memoir.edits.restore({**memoir.edits, **more})
        memoir.save_pretrained(folders[0] / f"{edits}")
        memoir.detach()
        memoir = _ours(folders, tiny_llama, tiny_tokenizer)
        saved = checkpoint.read(folders[0] / f"{edits}")
        with _Looked() as looked:
            assert len(merge(memoir, saved).added) == edits + 3
        cost.append(looked.numbers)
        memoir.detach()
    assert cost[1] < 2 * 8 * cost[0]


def _files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("fault", ["no room", "stopped behind the merge"])
def test_a_merge_that_cannot_be_saved_did_not_happen(folders, tiny_llama, tiny_tokenizer, monkeypatch, fault):
    """Else what is taught next would be put down on top of edits that no file has."""
    folder = folders[0] / "ours"
    memoir = Memoir.open(tiny_llama, tiny_tokenizer, folder)
    memoir.edit("One more", "Rome")
    before, files = dict(memoir.edits), _files(folder)
    said = {prompt: _answer(memoir, prompt) for prompt, _ in OURS}

    def full(*_):
        raise CheckpointError(fault)

    def stopped(*args, real=durable.merge):
        real(*args)
        raise KeyboardInterrupt(fault)

    with monkeypatch.context() as patch:
        patch.setattr(*((checkpoint, "save", full) if fault == "no room" else (durable, "merge", stopped)))
        with pytest.raises((CheckpointError, KeyboardInterrupt), match=fault):
            memoir.merge(folders[0] / "theirs")
    assert memoir.edits == before and {**_files(folder), "history.jsonl": b""} == {**files, "history.jsonl": b""}
    assert all(torch.equal(_answer(memoir, prompt), logits) for prompt, logits in said.items())
    assert memoir.edit("And another", "camel").edit_id == 4
    answers = {edit.prompt: _answer(memoir, edit.prompt) for edit in memoir.edits.values()}
    again = Memoir.open(memoir.detach(), tiny_tokenizer, folder)
    assert all(torch.equal(_answer(again, prompt), logits) for prompt, logits in answers.items())
    again.close()


def test_the_history_tells_of_a_merge(folders, tiny_llama, tiny_tokenizer):
    folder = folders[0] / "ours"
    with Memoir.open(tiny_llama, tiny_tokenizer, folder) as memoir:
        memoir.edit("One more", "Rome")
        memoir.merge(folders[0] / "theirs")
        memoir.edit("And another", "camel")
    told = list(happened(History(folder), durable.read_pair(folder)[1]))
    assert [(one["kind"], one["sequence"]) for one in told] == [("edit", 1), ("merge", 0), ("edit", 1)]
    assert told[1].items() >= {"added": 3, "same": 1, "conflicts": 1, "source": str(folders[0] / "theirs")}.items()
    assert words(told[1]) == f"3 edits of {folders[0] / 'theirs'} taken over, 1 were here, 1 conflicts"
    assert told[0]["journal"] != told[1]["journal"] == told[2]["journal"]


def test_a_page_that_was_given_back_keeps_what_is_merged_to_it(folders, tiny_llama, tiny_tokenizer):
    """The record of the next edit there must not say that the page was empty."""
    folder = folders[0] / "ours"
    memoir = Memoir.open(tiny_llama, tiny_tokenizer, folder)
    memoir.delete(0)
    memoir.compact(progress=False)
    assert memoir.status().pages == 1
    memoir.merge(folders[0] / "theirs", prefer="this")
    memoir.edit([("One more", "Rome"), ("And another", "camel")], progress=False)
    assert memoir.status().pages == 3
    answers = {edit.prompt: _answer(memoir, edit.prompt) for edit in memoir.edits.values()}
    again = Memoir.open(memoir.detach(), tiny_tokenizer, folder)
    assert all(torch.equal(_answer(again, prompt), logits) for prompt, logits in answers.items())
    again.close()


def test_a_refused_merge_leaves_what_is_known_for_learning(folders, tiny_llama, tiny_tokenizer):
    """Else what is taught next is not held back where earlier edits read."""
    answers = []
    for refused in (False, True):
        folder = folders[0] / f"one {refused}"
        with Memoir.open(tiny_llama, tiny_tokenizer, folder, _config("paper", page_edits=9)) as memoir:
            memoir.edit(OURS[:2], progress=False)
            if refused:
                with pytest.raises(ValueError, match="prefer"):
                    memoir.merge(folders[0] / "theirs", prefer="newer")
            memoir.edit(*OURS[2])
            answers.append([_answer(memoir, prompt) for prompt, _ in OURS])
        memoir.detach()
    assert all(map(torch.equal, *answers))


TAKING = ["io/merge.py", "core/live_edits.py", *(f"modules/{name}.py" for name in ("mask_store", "code_store"))]
TAKING += ["modules/residual_memory.py", "modules/banks.py", "io/codes.py"]
KEEPING = ["upkeep.py", "atomic.py", *(f"io/{name}.py" for name in ("durable", "merge", "checkpoint", "journal"))]
KEEPING += [f"io/{name}.py" for name in ("history", "pages", "renewal", "changes")]
ERRORS = [KeyboardInterrupt, OSError, MemoryError]
STOPS = 40


def _state(memoir):
    """All that a memory is, to the bit."""
    layer, edits = memoir.layer, memoir.edits
    tables = {"store": layer.store, "codes": layer.codes} if layer.codes is not None else {"store": layer.store}
    known = {
        f"{name}.{one}": table.tolist() for name, of in tables.items() for one, table in of.state_dict().items()
    } | {f"{name} rows": len(of) for name, of in tables.items()}
    known["pages"] = {page: layer.memory.page(page).tolist() for page in layer.memory.numbers}
    known["opened"] = layer.memory.pages, list(layer.memory._free), layer.memory.weight.tolist()
    known["edits"] = list(edits.items()), edits._ids, edits._counted, sum(map(len, edits.gone.values()))
    known["reads"] = {edit_id: reads.inputs.tolist() for edit_id, reads in edits.reads.items()}
    known["store"] = layer.store.stamp, layer.store.rests, layer.store.bank_numbers, layer.store.live
    return known | {"status": memoir.status(), "changed": renewal.state(memoir)}


def _with_a_bank(folders, model, tokenizer):
    """Their memory, with edits in a bank too, one of them of a prompt that others have."""
    memoir = Memoir.from_pretrained(model, tokenizer, folders[0] / "theirs")
    memoir.edit([("The sea is", "deep"), THEIRS[0]], bank="acme", progress=False)
    memoir.save_pretrained(folders[0] / "theirs")
    memoir.detach()


def test_a_merge_that_is_stopped_at_any_line_did_not_happen(folders, tiny_llama, tiny_tokenizer, stopped_at):
    _with_a_bank(folders, tiny_llama, tiny_tokenizer)
    memoir = _ours(folders, tiny_llama, tiny_tokenizer)
    spare = memoir.layer.memory.open()
    memoir.layer.memory.close(spare)
    before = _state(memoir)
    with stopped_at(0, None, TAKING) as run:
        other = copy.deepcopy(memoir)
        run.clear()
        other.merge(folders[0] / "theirs")
    merged, lines = _state(other), len(run)
    assert len(other.edits) == 7 and lines > 200
    for line in range(1, lines + 1, max(1, lines // STOPS)):
        error = ERRORS[line % len(ERRORS)]
        with stopped_at(line, error, TAKING) as run, pytest.raises(error):
            memoir.merge(folders[0] / "theirs")
        if len(memoir.edits) == len(other.edits) and line > lines - 5:
            break  # behind the last line that changes anything
        assert _state(memoir) == before, run[line - 1]
    memoir.merge(folders[0] / "theirs")
    stamps = dict.fromkeys(("store", "changed", "status"))
    assert _state(memoir) | stamps == merged | stamps


def test_an_opened_folder_is_whole_where_a_merge_was_stopped(folders, tiny_llama, tiny_tokenizer, stopped_at):
    """All edits are in, or none, in the memory and in the folder alike; and what is taught then is kept."""
    folder, line, step = folders[0] / "ours", 1, 190
    outcomes = set()
    while line:
        copied = folders[0] / f"at {line}"
        shutil.copytree(folder, copied)
        memoir = Memoir.open(tiny_llama, tiny_tokenizer, copied)
        memoir.edit("One more", "Rome")
        before, error = dict(memoir.edits), ERRORS[line // step % len(ERRORS)]
        with stopped_at(line, error, KEEPING) as run, suppress(error, CheckpointError):
            memoir.merge(folders[0] / "theirs")
        line = line + step if len(run) >= line else 0
        outcomes.add(len(memoir.edits))
        assert memoir.edits == before or len(memoir.edits) == 6, run[line - 1 - step]
        with suppress(CheckpointError):
            memoir.edit("And another", "camel")
        edits, answers = dict(memoir.edits), {prompt: _answer(memoir, prompt) for prompt, _ in [*OURS, *THEIRS]}
        again = Memoir.open(memoir.detach(), tiny_tokenizer, copied)
        assert again.edits == edits
        assert all(torch.equal(_answer(again, prompt), logits) for prompt, logits in answers.items())
        again.detach()
    assert len(outcomes) > 1
