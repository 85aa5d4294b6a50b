"""Which edits a search may find: those without a bank, and those of the banks that a prompt asks for."""

import copy
import random

import pytest
import torch

from memoir_fast.modules import MaskStore, MemoirLinear
from memoir_fast.modules import search as search_module
from memoir_fast.modules.banks import bound, put, restore, search, seen
from memoir_fast.modules.code_store import CodeStore

BANKS = ["", "a", "b", "c"]
D, K = 128, 12


def bits(count):
    """Random masks int32 [count, W] of K bits."""
    masks = torch.zeros(count, D // 32, dtype=torch.int64)
    for row in masks:
        for one in torch.randperm(D)[:K].tolist():
            row[one // 32] |= 1 << one % 32
    return torch.where(masks >= 1 << 31, masks - (1 << 32), masks).int()


def shared(one, other):
    return sum((a & b & 0xFFFFFFFF).bit_count() for a, b in zip(one.tolist(), other.tolist(), strict=True))


class Oracle:
    """What is stored, in plain Python."""

    def __init__(self):
        self.rows = []  # edit, bank, prompt, mask, threshold

    def visible(self, asked):
        allowed = [row for row in self.rows if row[1] in ("", *asked)]
        own = {row[2] for row in allowed if row[1]}
        return [row for row in allowed if row[1] or row[2] not in own]

    def search(self, mask, asked):
        found = [(shared(mask, row[3]), -number, row) for number, row in enumerate(self.visible(asked))]
        hits = [one for one in found if one[0] >= one[2][4]]
        best = max(hits or found, default=(0, 0, (-1,)))
        return best[2][0] if hits else -1, best[0]


def filled(edits, banks=BANKS, first_named=0):
    """A store of random edits beside what it holds; every third prompt is in several banks."""
    draw, store, oracle = random.Random(0), MaskStore(D, K, min_overlap=4), Oracle()
    for number in range(edits):
        bank = draw.choice(banks) if number >= first_named else ""
        prompt = draw.randrange(edits // 3 + 1)
        same = [row for row in oracle.rows if row[2] == prompt]
        if any(row[1] == bank for row in same):
            continue
        mask = same[0][3] if same else bits(1)[0]
        edit_id = store.append(mask)
        put(store, edit_id, bank, same[0][0] if same else None)
        least = draw.choice([3, 4, 6, K])
        store.set_min_overlap(least, edit_id)
        oracle.rows.append((edit_id, bank, prompt, mask, least))
    return store, oracle


def asked_by(rows):
    draw = random.Random(1)
    return [frozenset(draw.sample(["a", "b", "c", "nobody's"], draw.randrange(3))) for _ in range(rows)]


@pytest.fixture(params=["on the CPU", "as on a device"])
def place(request, monkeypatch):
    """Where values may be looked at, few rows are copied; else those of other banks get thresholds out of reach."""
    if request.param == "as on a device":
        monkeypatch.setattr(search_module, "readable", lambda _: False)


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("edits", [15, 60, 200])
def test_only_what_may_be_seen_is_searched(edits):
    store, oracle = filled(edits)
    queries = torch.cat([bits(30), torch.stack([row[3] for row in oracle.rows[:30]])])
    sets = asked_by(len(queries))
    edit, overlap = search(store, None, queries, sets)
    expected = [oracle.search(query, asked) for query, asked in zip(queries, sets, strict=True)]
    assert list(zip(edit.tolist(), overlap.tolist(), strict=True)) == expected
    assert len({one for one, _ in expected}) > 2
    nobody = search(store, None, queries)
    assert list(zip(*map(torch.Tensor.tolist, nobody), strict=True)) == [oracle.search(one, ()) for one in queries]


@pytest.mark.usefixtures("place")
def test_deleted_edits_hide_none_of_the_same_prompt():
    store, oracle = filled(90)
    for edit_id, *_ in random.Random(2).sample(oracle.rows, 40):
        store.delete(edit_id)
        oracle.rows = [row for row in oracle.rows if row[0] != edit_id]
    queries = torch.stack([row[3] for row in oracle.rows])
    for asked in (frozenset(), frozenset(["a"]), frozenset(["a", "c"])):
        edit, overlap = search(store, None, queries, [asked] * len(queries))
        expected = [oracle.search(query, asked) for query in queries]
        assert list(zip(edit.tolist(), overlap.tolist(), strict=True)) == expected


@pytest.mark.usefixtures("place")
def test_codes_of_other_banks_are_not_there():
    store, codes = MaskStore(D, K), CodeStore(D, K, min_overlap=3)
    masks = bits(40)
    for number, bank in enumerate(["", "a", "b", "a", ""] * 8):
        put(store, store.append(masks[number]), bank)
        rows = torch.stack([masks[number], bits(1)[0]])
        codes.add(number, rows, torch.full((2,), K // 2).int(), torch.full((2,), K).int())
    for asked, visible in (((), [0, 4]), (("a",), [0, 1, 3, 4]), (("b", "x"), [0, 2, 4])):
        alone = CodeStore(D, K, min_overlap=3)
        for row in range(len(codes)):
            owner = int(codes.owner[row])
            if owner % 5 in visible:
                alone.add(
                    owner, codes.codes[row][None], *(getattr(codes, n)[row][None] for n in ("min_overlap", "room"))
                )
        query = torch.stack([masks, bits(40), bits(40)], dim=1)
        found = search(store, codes, query, [frozenset(asked)] * 40)
        assert all(torch.equal(*pair) for pair in zip(found, alone.match(query), strict=True))
        assert (found[0] >= 0).sum() == sum(number % 5 in visible for number in range(40))


def test_a_store_without_banks_is_searched_as_before():
    store = MaskStore(D, K, min_overlap=K)
    masks = bits(3)
    for mask in masks:
        put(store, store.append(mask), "")
    assert store.bank is None and store.state_dict().keys() == MaskStore(D, K).state_dict().keys()
    found = search(store, None, masks, [frozenset(["a"])] * 3)
    assert all(torch.equal(*pair) for pair in zip(found, store.match(masks), strict=True))


@pytest.mark.usefixtures("place")
def test_no_prompts_and_a_store_without_edits():
    store = MaskStore(D, K)
    store.begin_banks()
    assert search(store, None, bits(0), [])[0].shape == (0,)
    assert search(store, None, bits(2), [frozenset(["a"]), frozenset()])[0].tolist() == [-1, -1]


def test_an_edit_binds_those_that_nobody_sees_without_it():
    store = MaskStore(D, K)
    for bank in ("", "a", "b"):
        put(store, store.append(bits(1)[0]), bank)
    assert bound(store, 0)[:3].tolist() == [False, True, True]
    assert bound(store, 1)[:3].tolist() == [False, False, False]
    put(store, store.append(bits(1)[0]), "a")
    put(store, store.append(bits(1)[0]), "a", twin=0)
    assert bound(store, 3)[:5].tolist() == [False, True, False, False, True]
    assert bound(store, 0)[:5].tolist() == [False, True, True, True, False], "that of the same prompt takes its place"
    assert bound(MaskStore(D, K), 0) is None


@pytest.mark.parametrize("way", ["restored", "copied", "state"])
def test_banks_survive(way):
    store, oracle = filled(400, first_named=150)  # grows while it has none, and again while it has some
    if way == "restored":
        other = MaskStore(D, K, min_overlap=4)
        other.restore(store.masks[: len(store)], store.min_overlap[: len(store)])
        first = {}
        for edit_id, _, prompt, *_ in oracle.rows:
            first.setdefault(prompt, edit_id)
        restore(other, {row[0]: row[1] for row in oracle.rows}, {row[0]: first[row[2]] for row in oracle.rows})
    elif way == "copied":
        other = copy.deepcopy(store)
    else:
        other = MaskStore(D, K, min_overlap=4)
        other.load_state_dict(store.state_dict())
        assert torch.equal(seen(other, frozenset()), seen(store, frozenset()))
        put(other, other.append(bits(1)[0]), "new")
        assert int(other.bank[len(other) - 1]) > int(store.bank.max()), "the number of a bank that is not known by name"
        other.load_state_dict(MaskStore(D, K).state_dict())
        assert other.bank is None
        return
    queries, sets = bits(40), asked_by(40)
    found, expected = search(other, None, queries, sets), search(store, None, queries, sets)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert next(row[0] for row in oracle.rows if row[1]) > 64 and len(store) > 128


def test_a_layer_by_itself_follows_edits_in_no_bank_alone():
    layer, x = MemoirLinear(torch.nn.Linear(64, 4), k=8, tau=0.9), torch.randn(2, 5, 64)
    masks, _ = layer.hash(x)
    for bank, mask in zip(("", "a"), masks, strict=True):
        put(layer.store, layer.store.append(mask), bank)
    assert layer.match(x)[0].tolist() == [0, -1]
    layer.memory.weight.normal_()
    with torch.no_grad():
        assert torch.equal(layer(x[1:]), layer.base(x[1:])) and not torch.equal(layer(x[:1]), layer.base(x[:1]))


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_generation_goes_on_with_the_banks_that_it_began_with(when):
    """Whether the first edit in a bank, its deletion, or one that takes another's place came since."""
    layer, x = MemoirLinear(torch.nn.Linear(64, 4), k=8, tau=0.9), torch.randn(3, 5, 64)
    masks, _ = layer.hash(x)
    asked = [frozenset(["a"])] * 3

    def add(mask, bank, twin=None):
        with layer.changing():
            put(layer.store, layer.store.append(mask), bank, twin)

    add(masks[0], "")
    if when == "before":
        add(masks[1], "a")
    before = layer.search(masks, asked)[0].tolist()
    with layer.views.generation():
        add(masks[0], "a", twin=0)
        with layer.changing(rows=True):
            layer.store.delete(1)
        for _ in range(100):
            add(masks[2], "a")
        assert layer.search(masks, asked)[0].tolist() == before
    assert layer.search(masks, asked)[0].tolist() == ([2, -1, 3] if when == "before" else [0, -1, 2])


def test_many_banks_are_numbered_in_one_go():
    """To number a bank, it does not go through those that there are: it would take the square of their number."""

    class Counted(dict):
        looked = 0

        def values(self):
            Counted.looked += len(self)
            return super().values()

    many = {number: f"bank {number % 1000}" for number in range(2000)}
    store = MaskStore(D, K)
    store.extend(bits(1).expand(2000, -1))
    store.bank_numbers = Counted()
    restore(store, many, {number: number for number in many})
    assert Counted.looked < 2000 and store.bank_numbers == {f"bank {number}": number + 1 for number in range(1000)}
    assert store.bank[[0, 999, 1000]].tolist() == [1, 1000, 1]
    put(store, 0, "one more")
    assert store.bank_numbers["one more"] == 1001
