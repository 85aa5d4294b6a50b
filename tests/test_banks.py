"""Banks from end to end: each request's answer is that of a memory with the edits that it may see, and no others.

`BANKS=200 pytest tests/test_banks.py` runs so many random sequences of edits and deletions for each kind of routing.
"""

import copy
import dataclasses
import itertools
import json
import os
import random
import threading

import pytest
from cache_name import CACHE

from memoir_fast import RECIPES, Edit, Memoir, MemoirConfig
from memoir_fast.errors import StoreFullError, UnknownEditError
from memoir_fast.io import changes, checkpoint, durable

PROMPTS = ["The capital of France is", "Which animal lives in", "What is the colour of", "The river runs through",
           "Who wrote the play about", "Where does the road to"]  # fmt: skip
TARGETS = ["Rome", "camel", "Greek", "London"]
NAMES = ["acme", "globex", "initech"]
RECIPE = dataclasses.replace(RECIPES["fast"], prefixes=0, rewordings=0, questions=0, steps=2)
GREEDY = {"min_new_tokens": 4, "max_new_tokens": 4, "do_sample": False}
SEQUENCES = range(int(os.environ.get("BANKS", "1")))


def config(routing, **options):
    values = {"recipe": RECIPE, "tau": 0.6, "k": 16, "background": 8, "page_edits": 3, "check": False, **options}
    return MemoirConfig(routing=routing, **values)


@pytest.fixture
def memoir(tiny_llama, tiny_tokenizer):
    return Memoir.attach(tiny_llama, tiny_tokenizer, config("early"))


def generated(memoir, prompts, **options):
    """What is said after each prompt of a batch, and the edits followed, as (bank, prompt, target) or None."""
    given = memoir.tokenizer(prompts, return_tensors="pt", padding=True)
    output = memoir.model.generate(**given, **{**GREEDY, **options})
    followed = [memoir.edits.get(route.edit_id) for route in memoir.last_routes]
    said = output[:, given.input_ids.shape[1] :].tolist()
    return said, [one and (one.bank, one.prompt, one.target) for one in followed], memoir.last_routes


def alone(memoir, prompt, names):
    """As `generated`, of one prompt, by itself, where no edit of another bank is there any more."""
    other = copy.deepcopy(memoir)
    for name in set(NAMES).difference(names):
        if other.edits.in_bank(name):
            other.delete_bank(name)
    (said,), (edit,), (route,) = generated(other, [prompt], memoir_banks=set(names))
    return said, edit, route


def thresholds(memoir, names):
    """Those of every code row, in order, of edits of these banks."""
    codes = memoir.layer.codes
    rows = {edit_id: codes.min_overlap[codes.rows_of(edit_id)].tolist() for edit_id in memoir.edits}
    return [(edit.bank, edit.prompt, rows[edit_id]) for edit_id, edit in memoir.edits.items() if edit.bank in names]


@pytest.mark.parametrize("routing", ["early", "paper"])
@pytest.mark.parametrize("seed", SEQUENCES)
def test_each_row_is_answered_as_if_other_banks_were_never_made(tiny_llama, tiny_tokenizer, routing, seed):
    """Edits of each bank are also taught in a memory of their own, where those of other banks never come."""
    draw = random.Random(seed)
    memoir = Memoir.attach(tiny_llama, tiny_tokenizer, config(routing, tau=0.4))
    own = {name: copy.deepcopy(memoir) for name in ["", *NAMES]}
    hits = 0
    for turn in range(24):
        name, prompt = draw.choice(list(own)), draw.choice(PROMPTS)
        concerned = list(own.values()) if not name else [own[name]]
        what = draw.choice(["edit"] * 6 + ["delete", "delete bank"])
        if what == "edit":
            edit = Edit(prompt, draw.choice(TARGETS), paraphrases=["Tell me: " + prompt] * (turn % 2), bank=name)
            results = [one.edit(edit) for one in (memoir, *concerned)]
            assert len({(result.replaced, result.loss, result.reach, result.bank) for result in results}) == 1
        elif what == "delete":
            for one in (memoir, *concerned):
                if one.edits.id_of(prompt, name) is not None:
                    one.delete(one.edits.id_of(prompt, name))
        elif memoir.edits.in_bank(name) and name:
            assert len(memoir.delete_bank(name)) == len(own[name].delete_bank(name))
        if turn % 3 == 2:
            rows = [(draw.choice(PROMPTS), draw.choice(list(own))) for _ in range(5)]
            said, edits, routes = generated(
                memoir, [prompt for prompt, _ in rows], memoir_banks=[one for _, one in rows]
            )
            for row, (prompt, bank) in enumerate(rows):
                (expected,), (edit,), (route,) = generated(own[bank], [prompt], memoir_banks=bank)
                assert (said[row], edits[row], routes[row].overlap) == (expected, edit, route.overlap)
                hits += edit is not None
            for bank, one in own.items() if routing == "early" else ():
                assert thresholds(memoir, ["", bank]) == thresholds(one, ["", bank])
    assert hits > 3
    for prompt, names in itertools.product(PROMPTS[:2], [(), NAMES[:1], NAMES[1:], NAMES]):
        with memoir.banks(set(names)):
            (said,), (edit,), (route,) = generated(memoir, [prompt])
        assert (said, edit, route) == alone(memoir, prompt, names)
    memoir.detach()


def test_one_prompt_with_a_target_in_each_bank(memoir):
    ids = [
        memoir.edit(PROMPTS[0], target, bank=bank).edit_id for bank, target in zip(["", *NAMES], TARGETS, strict=True)
    ]
    assert ids == [0, 1, 2, 3] and len(set(memoir.layer.store.page[:4].tolist())) == 4
    _, edits, _ = generated(memoir, PROMPTS[:1] * 4, memoir_banks=[None, *NAMES])
    assert edits == [(bank, PROMPTS[0], target) for bank, target in zip(["", *NAMES], TARGETS, strict=True)]
    again = memoir.edit(PROMPTS[0], "camel", bank="globex")
    assert again.replaced and again.edit_id == 2 and again.bank == "globex" and memoir.edits[1].target == TARGETS[1]
    memoir.delete(1)
    _, edits, _ = generated(memoir, PROMPTS[:1] * 3, memoir_banks=["acme", "globex", {"acme", "initech"}])
    assert [edit[0] for edit in edits] == ["", "globex", "initech"]
    with pytest.raises(ValueError, match="bank 'acme' was to be put into 'globex'"):
        memoir.edit(Edit("x y", "z", bank="acme"), bank="globex")
    results = memoir.edit([Edit("x y", "z"), ("z y", "x")], bank="acme", batch=2, progress=False)
    assert [memoir.edits[one.edit_id].bank for one in results] == ["acme", "acme"]
    assert next(memoir.edit_stream([("q r", "z")], bank="globex")).bank == "globex"


def test_who_asks_for_no_bank_sees_edits_in_none_alone(memoir):
    memoir.edit(PROMPTS[0], "Rome"), memoir.edit(PROMPTS[1], "Rome", bank="acme")
    plain = generated(memoir, PROMPTS[:2])
    assert [edit and edit[0] for edit in plain[1]] == ["", None]
    with memoir.disabled():
        assert generated(memoir, PROMPTS[1:2])[0][0] == plain[0][1], "the unedited model's"
    with memoir.banks("acme"):
        assert [edit[0] for edit in generated(memoir, PROMPTS[:2])[1]] == ["", "acme"]
        assert generated(memoir, PROMPTS[1:2], memoir_banks="globex")[1] == [None], "the call's own word counts"
        with memoir.banks({"globex"}):
            assert generated(memoir, PROMPTS[1:2])[1] == [None]
    assert generated(memoir, PROMPTS[1:2])[1] == [None]


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({"num_beams": 3}, 3),
        ({"num_beams": 3, "num_return_sequences": 2}, 3),
        ({"do_sample": True, "num_return_sequences": 2}, 2),
        ({"prefill_chunk_size": 2}, 1),
    ],
)
def test_all_rows_of_a_request_have_its_banks(memoir, options, rows):
    for name in NAMES[:2]:
        memoir.edit(PROMPTS[0], TARGETS[0], bank=name)
    asked = ["acme", None, "globex"]
    _, edits, _ = generated(memoir, PROMPTS[:1] * 3, memoir_banks=asked, **options)
    assert [edit and edit[0] for edit in edits] == [name for name in asked for _ in range(rows)]


def test_a_list_of_another_length_is_refused(memoir):
    memoir.edit(PROMPTS[0], "Rome", bank="acme")
    given = memoir.tokenizer(PROMPTS[:1] * 2, return_tensors="pt")
    with memoir.banks(["acme"]), pytest.raises(ValueError, match="for 1 rows, of a batch of 2"):
        memoir.model(**given)
    with pytest.raises(TypeError, match="banks"):
        memoir.model.generate(**given, memoir_banks=3)


@pytest.mark.parametrize("parts", [1, 3])
def test_a_prompt_in_parts_and_a_further_turn(memoir, parts):
    """By hand: each part is decided with the banks in force; what is said afterwards follows what was decided."""
    memoir.edit(PROMPTS[0], "Rome", bank="acme")
    ids = memoir.tokenizer(PROMPTS[0], return_tensors="pt").input_ids
    cache = None
    with memoir.banks("acme"):
        for part in ids.split(-(-ids.shape[1] // parts), dim=1):
            cache = memoir.model(input_ids=part, **{CACHE: cache}, use_cache=True)[CACHE]
    assert memoir.followed(cache) == [0]
    memoir.model(input_ids=ids[:, :1], **{CACHE: cache})
    assert memoir.followed(cache) == [0], "a token that is said"
    memoir.edit(PROMPTS[0], "Greek", bank="globex")
    memoir.model(input_ids=ids[:, :1], **{CACHE: cache})
    assert memoir.followed(cache) == [0]
    memoir.model(input_ids=ids, **{CACHE: cache})
    assert memoir.followed(cache) == [-1], "a turn that is read outside of the block"
    with memoir.banks("globex"):
        memoir.model(input_ids=ids, **{CACHE: cache})
    assert memoir.followed(cache) == [1]
    memoir.delete_bank("globex")
    assert memoir.followed(cache) == [-1]


def test_a_bank_is_deleted_whole(memoir, monkeypatch):
    for prompt in PROMPTS[:3]:
        memoir.edit(prompt, "Rome", bank="acme"), memoir.edit(prompt, "Rome", bank="globex")
    assert memoir.status().banks == {"acme": 3, "globex": 3}
    original, calls = memoir.layer.store.delete, []

    def delete(edit_id):
        calls.append(edit_id)
        if len(calls) == 2:
            raise KeyboardInterrupt
        original(edit_id)

    monkeypatch.setattr(memoir.layer.store, "delete", delete)
    with pytest.raises(KeyboardInterrupt):
        memoir.delete_bank("acme")
    assert memoir.status().banks == {"globex": 3} and len(calls) > 3
    with pytest.raises(UnknownEditError, match="bank 'acme'"):
        memoir.delete_bank("acme")
    with pytest.raises(ValueError, match="delete_bank needs"):
        memoir.delete_bank("")


def test_where_there_may_be_no_more_pages_banks_share_them_but_not_of_one_prompt(tiny_llama, tiny_tokenizer):
    memoir = Memoir.attach(tiny_llama, tiny_tokenizer, config("early", max_pages=2))
    for name in NAMES[:2]:
        memoir.edit(PROMPTS[0], "Rome", bank=name)
    memoir.edit(PROMPTS[1], "Rome", bank="initech")
    assert sorted(memoir.layer.store.page[:3].tolist()) in ([0, 0, 1], [0, 1, 1])
    with pytest.raises(StoreFullError):
        memoir.edit(PROMPTS[0], "Rome", bank="initech")
    assert memoir.status().banks == {"acme": 1, "globex": 1, "initech": 1}


def test_upkeep_leaves_edits_in_their_banks(memoir):
    for name, prompt in itertools.product(["", *NAMES], PROMPTS[:2]):
        memoir.edit(prompt, "Rome", bank=name)
    banks = {edit_id: (edit.bank, edit.prompt) for edit_id, edit in memoir.edits.items()}
    memoir.refresh(turns=1, progress=False)
    memoir.calibrate(PROMPTS * 4, 0.4)
    memoir.delete(0)
    assert memoir.faded(), "so short a recipe leaves some"
    memoir.compact(progress=False)
    del banks[0]
    assert {edit_id: (edit.bank, edit.prompt) for edit_id, edit in memoir.edits.items()} == banks
    pages = {}
    for edit_id, (bank, _) in banks.items():
        pages.setdefault(int(memoir.layer.store.page[edit_id]), set()).add(bank)
    assert all(len(one) == 1 for one in pages.values())
    assert memoir.compact(progress=False) == [], "half empty pages of several banks cannot be filled up"


@pytest.mark.parametrize("routing", ["early", "paper"])
def test_folders_journals_and_merges_keep_banks(tiny_llama, tiny_tokenizer, tmp_path, routing):
    settings = config(routing)

    def version(folder):
        return json.loads((folder / checkpoint.CONFIG_NAME).read_text())["format_version"]

    def asked(memoir):
        pairs = list(itertools.product(PROMPTS[:3], [None, *NAMES]))
        return generated(memoir, [prompt for prompt, _ in pairs], memoir_banks=[name for _, name in pairs])

    with Memoir.open(tiny_llama, tiny_tokenizer, tmp_path / "one", settings) as memoir:
        memoir.edit(PROMPTS[0], "Rome")
        memoir.edit(PROMPTS[0], "camel", bank="acme"), memoir.edit(PROMPTS[1], "Greek", bank="globex")
        memoir.save_pretrained(tmp_path / "one")
        memoir.edit(PROMPTS[0], "London", bank="globex"), memoir.edit(PROMPTS[2], "London", bank="initech")
        memoir.edit(PROMPTS[2], "London", bank="globex"), memoir.delete_bank("initech")
        memoir.edit(PROMPTS[1], "camel", bank="acme")
        expected, edits = asked(memoir), dict(memoir.edits)
        memoir.save_pretrained(tmp_path / "other")
        memoir.detach()
    assert {edit[0] for edit in expected[1] if edit} == {"", "acme", "globex"}
    _, journal = durable.read_pair(tmp_path / "one")
    with journal:
        found = [(one.kind, one.values.get("bank")) for one in journal if one.kind != "delete"]
    assert found == [(changes.EDIT_IN_BANK, bank) for bank in ("globex", "initech", "globex", "acme")]
    for folder in ("one", "other"):
        memoir = Memoir.from_pretrained(tiny_llama, tiny_tokenizer, tmp_path / folder)
        assert dict(memoir.edits) == edits and asked(memoir) == expected
        memoir.detach()
        assert version(tmp_path / folder) == 4, "releases that know no banks would tell everybody"
    memoir = Memoir.attach(tiny_llama, tiny_tokenizer, settings)
    memoir.edit(PROMPTS[1], "Rome")
    memoir.save_pretrained(tmp_path / "none")
    assert version(tmp_path / "none") == 3, "and read this one"
    memoir.edit(PROMPTS[1], "Rome", bank="acme")
    found = memoir.merge(tmp_path / "other", prefer="this")
    assert [(here.bank, here.target, there.target) for here, there in found.conflicts] == [("acme", "Rome", "camel")]
    merged = asked(memoir)[1]
    wanted = [(bank, prompt, "Rome" if (bank, prompt) == ("acme", PROMPTS[1]) else target)
              for bank, prompt, target in filter(None, expected[1])]  # fmt: skip
    assert [edit for edit, before in zip(merged, expected[1], strict=True) if before] == wanted
    memoir.detach()


def test_threads_with_a_bank_each_while_others_change(memoir):
    for name, prompt in itertools.product(NAMES, PROMPTS):
        memoir.edit(prompt, TARGETS[NAMES.index(name)], bank=name)
    expected = {
        (name, prompt): generated(memoir, [prompt], memoir_banks=name)[:2] for name in NAMES for prompt in PROMPTS
    }
    wrong, done = [], threading.Event()

    def ask(number):
        draw = random.Random(number)
        while not done.is_set():
            name, prompt = draw.choice(NAMES[:2]), draw.choice(PROMPTS)
            how = {"memoir_banks": name} if draw.random() < 0.5 else {}
            with memoir.banks("" if how else [name]):
                found = generated(memoir, [prompt], **how)[:2]
            if found != expected[name, prompt]:
                wrong.append((name, prompt, found))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        for turn in range(6):
            memoir.delete_bank("initech")
            for prompt in PROMPTS[turn % 3 :: 2]:
                memoir.edit(prompt, TARGETS[turn % 4], bank="initech")
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert wrong == []


@pytest.mark.parametrize("name", ["two\nlines", " acme", "x" * 201, "\x1b[31m"])
def test_a_bank_has_a_name_that_can_be_shown(memoir, name):
    with pytest.raises(ValueError, match="a bank's name must be printable"):
        Edit("a prompt", "a target", bank=name)
    with pytest.raises(TypeError, match="a bank's name must be a string, got int"):
        memoir.edit("a prompt", "a target", bank=3)
