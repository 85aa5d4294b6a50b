"""The store of routing codes: whose row matches, thresholds that rise, rows that come and go."""

import copy

import pytest
import torch

from memoir_fast.mask_format import pack, unpack
from memoir_fast.modules import code_store, naming
from memoir_fast.modules.code_store import CodeStore, kept, kept_bits
from memoir_fast.modules.naming import SPELLINGS, TOKENS, present
from memoir_fast.modules.search import shared_bits
from memoir_fast.ops import tophash

WIDTH, K = 150, 20


def codes(count):
    return tophash(torch.rand(count, WIDTH), K, torch.arange(WIDTH).int())[0]


def filled(rows, owners, least=12):
    store = CodeStore(WIDTH, K, 5)
    made = codes(rows)
    for row, owner in enumerate(owners):
        store.add(owner, made[row : row + 1], torch.tensor([least]).int(), torch.tensor([K]).int())
    return store, made


def ints(*values):
    return torch.tensor(values).int()


def by_hand(store, query):
    """The rule, written plainly: of all (query, row) pairs that match, the largest overlap; first query, lowest row."""
    rows = unpack(store.codes[: len(store)], WIDTH).int()
    found = []
    for prompt in query:
        best, most = (-1, -1), 0
        for one in unpack(prompt, WIDTH).int():
            own = (-1, -1)
            for row, other in enumerate(rows):
                overlap = int((one * other).sum())
                most = max(most, overlap)
                if overlap >= int(store.min_overlap[row]) and overlap > own[0] and store.owner[row] >= 0:
                    own = overlap, int(store.owner[row])
            if own[0] > best[0]:
                best = own
        found.append((best[1], best[0] if best[1] >= 0 else most))
    return [list(one) for one in zip(*found, strict=True)]


@pytest.mark.parametrize("least", [3, 6, 20])
def test_any_query_may_match_and_the_largest_overlap_decides(least):
    store, made = filled(70, [row % 9 for row in range(70)], least)
    query = codes(3 * 40).view(40, 3, -1)
    query[::4, 1] = made[:10]
    edit, overlap = store.match(query)
    assert [edit.tolist(), overlap.tolist()] == by_hand(store, query)
    assert edit[::4].tolist() == [row % 9 for row in range(10)] and edit.dtype == overlap.dtype == torch.int32


@pytest.mark.parametrize("k", [1, 2, 20, 31, 32, 33, 63, 64, 149])
def test_rows_of_prompts_that_are_kept_lack_a_few_bits(k):
    made = tophash(torch.rand(7, WIDTH), k, torch.arange(WIDTH).int())[0]
    rows = kept(made)
    assert rows.dtype == torch.int32 and rows.shape == made.shape and torch.equal(rows & made, rows)
    assert unpack(rows, WIDTH).sum(dim=1).tolist() == [kept_bits(k)] * 7 == [k - max(1, k // 32)] * 7
    assert kept(made[:0]).shape == made[:0].shape


def code_of(bits):
    return pack(torch.isin(torch.arange(WIDTH), torch.tensor(list(bits)))[None])


def test_what_is_nearest_to_a_kept_row_follows_nothing():
    """Edit 7 shares 12 of 20 bits with what it keeps."""
    store, near, own = CodeStore(WIDTH, K, 5), code_of(range(20)), code_of(range(8, 28))
    store.add(3, code_of(range(100, 120)), ints(5), ints(K))
    store.add(7, torch.cat([own, kept(near)]), ints(5, 5), ints(K, 0))
    assert store.keeps and store.leading.tolist() == [True, True, False]
    edit, overlap = store.match(torch.stack([near, own]))
    assert edit.tolist() == [-1, 7] and overlap.tolist() == [kept_bits(K), K]
    assert store.match(torch.cat([near, own])[None])[0].tolist() == [7], "its other code is nearer to the edit"
    unseen = torch.ones(8, dtype=torch.bool)
    unseen[7] = False
    assert store.match(near[None], unseen)[0].tolist() == [-1]
    assert store.overlaps(near).tolist() == [[0, 12]] and store.best_overlap(near).tolist() == [12]
    store.raise_where(near, 3)
    assert store.min_overlap[:3].tolist() == [5, 13, 5]
    store.min_overlap[1] = 5

    back = CodeStore(WIDTH, K, 5)
    back.restore(store.state(), 5)
    assert back.keeps and back.match(near[None])[0].tolist() == [-1]
    back.add(9, near, ints(5), ints(K))  # another edit takes it, and what is like it
    assert back.match(near[None])[0].tolist() == [9] and back.match(code_of([*range(17), 40, 41, 42])[None])[
        0
    ].tolist() == [9]
    back.remove(9)
    back.remove(7)
    assert not back.keeps and back.match(near[None])[0].tolist() == [-1]
    store.room[2] = K  # as a release would read it that knows no kept rows
    assert store.match(near[None])[0].tolist() == [7]


def test_an_empty_store_matches_nothing():
    store = CodeStore(WIDTH, K, 1)
    assert [one.tolist() for one in store.match(codes(6).view(2, 3, -1))] == [[-1, -1], [0, 0]]
    assert store.overlaps(codes(4)).shape == (4, 0) and store.best_overlap(codes(2)).tolist() == [0, 0]


def test_rows_survive_growth_and_removal():
    store, made = filled(200, range(200))
    assert len(store) == 200 and store.match(made[:, None])[0].tolist() == list(range(200))
    for edit in range(0, 200, 2):
        store.remove(edit)
    assert store.match(made[:, None])[0].tolist() == [edit if edit % 2 else -1 for edit in range(200)]
    store.remove(1)  # more than half are gone: the others close ranks
    assert len(store) < 200 and store.match(made[:, None])[0].tolist()[2:] == [
        e if e % 2 else -1 for e in range(2, 200)
    ]
    assert store.overlaps(made).shape == (200, 99)


def test_removing_an_edits_earlier_rows_leaves_its_new_ones():
    store, made = filled(4, [7, 3, 7, 7])
    store.remove(7, before=3)
    assert store.rows_of(7).tolist() == [3] and store.match(made[:, None])[0].tolist() == [-1, 3, -1, 7]


def test_truncate_undoes_an_add():
    store, made = filled(3, [0, 1, 2])
    store.add(9, codes(2), ints(5, 5), ints(K, K))
    store.truncate(3)
    assert len(store) == int(store.count) == 3 and store.rows_of(9).tolist() == []
    assert store.match(made[:, None])[0].tolist() == [0, 1, 2]


def test_thresholds_rise_where_another_edit_would_match_and_only_within_room():
    store = CodeStore(WIDTH, K, 4)
    made = codes(3)
    near = made[:1].clone()
    store.add(0, made[:1], ints(6), ints(K))
    store.add(1, made[1:2], ints(6), ints(6))
    store.raise_where(near, edit_id=0)  # its own rows stay
    assert store.min_overlap[:2].tolist() == [6, 6]
    store.raise_where(torch.cat([near, made[1:2]]), edit_id=5)
    assert store.min_overlap[:2].tolist() == [K, 6]  # as far as there is room, never beyond all bits
    before = store.min_overlap.clone()
    store.raise_where(torch.zeros_like(near), edit_id=6)
    assert torch.equal(store.min_overlap, before)  # never down


def test_the_least_threshold_moves_all_rows_but_those_that_were_raised():
    store, _ = filled(3, [0, 1, 2], least=5)
    store.min_overlap[1] = 15
    store.set_min_overlap(8)
    assert store.min_overlap[:3].tolist() == [8, 15, 8]
    store.set_min_overlap(17)
    assert store.min_overlap[:3].tolist() == [17, 17, 17] and store.least == 17


def test_what_a_file_keeps_fills_an_empty_store():
    store, made = filled(90, range(90))
    store.remove(4)
    other = CodeStore(WIDTH, K, 1)
    other.restore(store.state(), store.least)
    assert all(torch.equal(a, b) for a, b in zip(other.match(made[:, None]), store.match(made[:, None]), strict=True))
    with pytest.raises(ValueError, match="only an empty store"):
        other.restore(store.state(), 5)


def test_state_dict_and_copies():
    store, made = filled(90, range(90))
    other = CodeStore(WIDTH, K, 5)
    other.load_state_dict(store.state_dict())
    twin = copy.deepcopy(store)
    store.remove(3)
    for one in (other, twin):
        assert len(one) == 90 and one.match(made[:, None])[0].tolist() == list(range(90))
    assert "rows=90" in repr(other) and other.half().codes.dtype == torch.int32


def subjects(rows):
    """Subjects of one token, of two, and of none."""
    names = torch.full((rows, SPELLINGS, TOKENS), -1).int()
    names[:, 0, 0] = torch.randint(-1, 6, (rows,))
    names[:, 0, 1] = torch.where(names[:, 0, 0] >= 0, torch.randint(-1, 6, (rows,)), -1)
    return names


@pytest.mark.parametrize("on_a_device", [False, True])
@pytest.mark.parametrize("least", [3, 6, 20])
def test_rows_whose_subject_is_not_named_are_not_there(monkeypatch, least, on_a_device):
    """As if they were taken out for that prompt, but for the overlap of what matches none."""
    if on_a_device:
        monkeypatch.setattr(code_store, "readable", lambda _: False)
        monkeypatch.setattr(code_store, "_SHARED_AT_ONCE", 3 * 70 * 9)  # of nine prompts
    store, made = CodeStore(WIDTH, K, 5), codes(70)
    names = subjects(70)
    store.add(torch.arange(70).int() % 9, made, ints(*[least] * 70), ints(*[K] * 70), names)
    store.remove(4)
    query, tokens = codes(3 * 40).view(40, 3, -1), torch.randint(-1, 6, (40, 4))
    query[::4, 1] = made[:10]
    words = present(tokens, 6)
    for among in (None, torch.arange(9) % 2 == 0):
        edit, overlap = store.match(query, among, words)
        assert edit.dtype == overlap.dtype == torch.int32
        for one, prompt in enumerate(query):
            there = naming.named(names, words[one : one + 1])[0] & (store.owner[:70] >= 0)
            if among is not None:
                there &= among[store.owner[:70].clamp(min=0).long()]
            alone, plain = CodeStore(WIDTH, K, 1), there.nonzero().flatten()
            alone.add(store.owner[plain], made[plain], store.min_overlap[plain], ints(*[K] * len(plain)))
            (found,), (most,) = alone.match(prompt[None]) if len(plain) else (ints(-1), ints(0))
            assert edit[one] == found and (found < 0 or overlap[one] == most)
            rows = store.owner[:70] >= 0 if among is None else (store.owner[:70] >= 0) & (store.owner[:70] % 2 == 0)
            if found < 0:
                assert overlap[one] == shared_bits(prompt, made[rows]).max(), "whatever their subjects"


def test_searching_among_subjects_needs_the_prompts_tokens():
    store = CodeStore(WIDTH, K, 5)
    store.add(0, codes(1), ints(5), ints(K), torch.full((1, SPELLINGS, TOKENS), -1).int())
    assert store.names is None and "names" not in store.state(), "no row has a subject"
    store.match(codes(3)[None])
    names = torch.full((1, SPELLINGS, TOKENS), 3).int()
    store.add(1, codes(1), ints(5), ints(K), names)
    with pytest.raises(ValueError, match="edits have subjects"):
        store.match(codes(3)[None])
    assert store.state()["names"][:, 0, 0].tolist() == [-1, 3]


def test_rows_with_a_subject_have_lower_thresholds_that_stay():
    store, names = CodeStore(WIDTH, K, 15), subjects(30)
    made = codes(30)
    store.add(0, made, ints(*[0] * 30), ints(*[K] * 30), names)
    have = naming.have(names)
    assert have.any() and not have.all()
    assert store.min_overlap[:30].tolist() == torch.where(have, 13, 15).tolist()
    store.raise_where(made)
    assert store.min_overlap[:30].tolist() == torch.where(have, 13, K).tolist(), "other prompts do not name it"
    store.set_min_overlap(10)
    assert store.min_overlap[:30].tolist() == torch.where(have, 9, K).tolist()
    store.set_min_overlap(1)
    assert store.min_overlap[:30][have].unique().tolist() == [1]
    assert store.overlaps(made).shape == (30, int((~have).sum())), "thresholds are chosen by rows without a subject"


def test_subjects_go_with_their_rows():
    store, names = CodeStore(WIDTH, K, 5), subjects(200)
    names[:, 0, 0] = torch.arange(200) % 6
    store.add(torch.arange(200).int(), codes(200), ints(*[5] * 200), ints(*[K] * 200), names)
    undo = store.undo_from_here([3])
    before = store.state()
    store.add(999, codes(1), ints(5), ints(K))
    store.remove([*range(0, 200, 2), 3, 999, *range(1, 60, 2)])
    live = store.owner[: len(store)] >= 0
    assert torch.equal(store.names[: len(store)][live], names[store.owner[: len(store)][live].long()])
    assert len(store) < 200, "the ranks were closed"
    undo()
    assert all(torch.equal(store.state()[name], value) for name, value in before.items())
    other = CodeStore(WIDTH, K, 5)
    other.restore(before, 5)
    third = CodeStore(WIDTH, K, 5)
    third.load_state_dict(store.state_dict())
    twin = copy.deepcopy(store)
    plain = CodeStore(WIDTH, K, 5)
    plain.load_state_dict(filled(3, [0, 1, 2])[0].state_dict())
    assert plain.names is None
    for one in (other, third, twin):
        assert torch.equal(one.state()["names"], names)
    store.add(200, codes(1), ints(5), ints(K))
    store.remove([*range(200)])
    assert len(store) == 1 and store.names is None, "the last subject has gone with its row"
    store.add(201, codes(1), ints(5), ints(K), names[:1])
    assert naming.have(store.names[:2]).tolist() == [False, True]
