"""`MaskStore`: growing, deleting, searching, and coming back from a file."""

import copy
import pickle

import pytest
import torch

from memoir_fast.errors import MemoirError, StoreFullError, UnknownEditError
from memoir_fast.modules import MaskStore, TopHash

WIDTH, K = 150, 12


def _hashed(count):
    return TopHash(WIDTH, K)(torch.randn(count, 1, WIDTH))


def _found(store, masks):
    return store.match(masks)[0].tolist()


def test_rows_survive_growth_which_is_rare():
    store, (masks, columns) = MaskStore(WIDTH, K), _hashed(1000)
    places = set()
    for edit, mask in enumerate(masks):
        assert store.append(mask) == edit
        places.add(store.masks.data_ptr())
        assert int(store.count) == len(store) == edit + 1
    assert len(store.masks) == 1024 and len(places) <= 5
    assert torch.equal(store.masks[:1000], masks) and torch.equal(store.columns[:1000], columns)
    assert not store.masks[1000:].any()
    assert _found(store, masks) == list(range(1000))


def test_many_rows_at_once_past_twice_the_capacity():
    store, (masks, _) = MaskStore(WIDTH, K), _hashed(300)
    assert store.extend(masks[:3]) == range(0, 3)
    assert store.extend(masks[3:]) == range(3, 300)
    assert store.extend(masks[:0]) == range(300, 300)
    assert _found(store, masks) == list(range(300))
    assert store.nbytes == sum(buffer.nbytes for buffer in store.buffers()) - 4


def test_a_limited_store_never_moves_and_refuses_more():
    store, (masks, _) = MaskStore(WIDTH, K, max_edits=5), _hashed(8)
    place = [buffer.data_ptr() for buffer in store.buffers()]
    store.extend(masks[:3])
    with pytest.raises(StoreFullError, match=r"holds 3 of max_edits = 5, 3 more do not fit"):
        store.extend(masks[3:6])
    assert len(store) == int(store.count) == 3 and _found(store, masks[3:6]) == [-1] * 3
    store.extend(masks[3:5])
    with pytest.raises(StoreFullError):
        store.append(masks[5])
    store.set_min_overlap(3)
    store.set_min_overlap(4, 0)
    assert [buffer.data_ptr() for buffer in store.buffers()] == place
    with pytest.raises(ValueError, match="max_edits must be at least 1, got 0"):
        MaskStore(WIDTH, K, max_edits=0)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda m: m[:, :1], ValueError, r"masks must be int32 \[n, 8\], got int32 \[2, 1\]"),
        (lambda m: m.long(), TypeError, r"masks must be int32 \[n, 8\], got int64 \[2, 8\]"),
    ],
)
def test_rows_of_the_wrong_shape_or_dtype_leave_the_store_alone(change, error, text):
    store, (masks, _) = MaskStore(WIDTH, K), _hashed(2)
    with pytest.raises(error, match=text):
        store.extend(change(masks))
    assert len(store) == int(store.count) == 0 and not store.masks.any()


def test_a_deleted_edit_matches_nothing_and_its_id_is_not_used_again():
    store, (masks, _) = MaskStore(WIDTH, K), _hashed(4)
    store.extend(masks[:3])
    store.delete(2)
    store.delete(0)
    assert store.live == [1] and len(store) == 3
    assert _found(store, masks[:3]) == [-1, 1, -1]
    store.set_min_overlap(1)
    assert store.match(masks[:1])[0].tolist() != [0]
    store.set_min_overlap(K)
    assert store.append(masks[3]) == 3
    for gone in (0, 2, 4, -1, "1", None, 1.0, True):
        with pytest.raises(UnknownEditError, match=f"no live edit has the id {gone!r}; the store has 2 live edits"):
            store.delete(gone)
    assert issubclass(UnknownEditError, KeyError) and issubclass(UnknownEditError, MemoirError)


def test_truncate_undoes_an_extend():
    store, (masks, _) = MaskStore(WIDTH, K), _hashed(5)
    store.extend(masks[:2])
    store.delete(1)
    store.extend(masks[2:])
    store.delete(3)
    store.truncate(2)
    assert len(store) == int(store.count) == 2 and store.live == [0]
    assert _found(store, masks) == [0, -1, -1, -1, -1]
    assert store.append(masks[4]) == 2 and store.live == [0, 2]


def test_the_lowest_id_wins_a_tie():
    store, (masks, _) = MaskStore(WIDTH, K), _hashed(2)
    store.extend(masks[[0, 1, 1, 0]])
    assert _found(store, masks) == [0, 1]
    store.delete(0)
    assert _found(store, masks) == [3, 1]


def test_thresholds_follow_their_rows():
    store, (masks, _) = MaskStore(WIDTH, K, min_overlap=5), _hashed(200)
    own = torch.arange(30, dtype=torch.int32) + 1
    store.extend(masks[:30], own)
    store.append(masks[30])
    store.set_min_overlap(7, 3)
    own[3] = 7
    store.extend(masks[31:160])  # the buffers grow
    assert store.min_overlap[:160].tolist() == own.tolist() + [5] * 130 and len(store.min_overlap) == len(store.masks)
    store.truncate(10)
    store.append(masks[160])
    assert store.min_overlap[:11].tolist() == [*own[:10].tolist(), 5]
    store.set_min_overlap(6)
    store.append(masks[161])
    assert store.min_overlap[:12].tolist() == [6] * 12
    for wrong in (0, -1):
        with pytest.raises(ValueError, match=f"min_overlap must be at least 1, got {wrong}"):
            store.set_min_overlap(wrong, 0)
    with pytest.raises(UnknownEditError):
        store.set_min_overlap(1, 12)
    with pytest.raises(ValueError, match=r"min_overlap must be int32 \[2\], got int32 \[1\]"):
        store.extend(masks[:2], own[:1])
    assert len(store) == 12 and store.min_overlap[:12].tolist() == [6] * 12


def test_a_match_needs_the_bits_of_its_own_row():
    store, (masks, _) = MaskStore(WIDTH, K), _hashed(2)
    store.extend(masks[[0, 0, 1]])
    store.set_min_overlap(K + 1, 0)
    assert store.match(masks)[0].tolist() == [1, 2] and store.match(masks)[1].tolist() == [K, K]
    store.set_min_overlap(K + 1, 2)
    assert store.match(masks)[0].tolist() == [1, -1] and store.match(masks)[1].tolist() == [K, K]


def test_a_state_from_before_thresholds_takes_the_one_that_is_set():
    masks, columns = _hashed(80)
    store, other = MaskStore(WIDTH, K), MaskStore(WIDTH, K, min_overlap=9)
    store.extend(masks)
    state = store.state_dict()
    del state["min_overlap"]
    other.load_state_dict(state)
    assert other.min_overlap.tolist() == [9] * len(other.masks) and "min_overlap" not in state
    other.load_state_dict(store.state_dict())
    assert other.min_overlap.tolist() == [K] * len(other.masks)


def test_restore_knows_which_edits_were_deleted():
    store, (masks, _) = MaskStore(WIDTH, K), _hashed(70)
    store.extend(masks)
    store.delete(69)
    other = MaskStore(WIDTH, K)
    saved = store.masks[:70].clone()
    other.restore(saved)
    assert other.masks.data_ptr() == saved.data_ptr(), "many masks are taken over, not copied"
    assert other.live == list(range(69)) and len(other) == 70
    assert _found(other, masks) == [*range(69), -1]
    with pytest.raises(ValueError, match="only an empty store can be restored, this one has 70 rows"):
        other.restore(masks)
    assert other.append(masks[69]) == 70 and _found(other, masks) == [*range(69), 70]
    few = MaskStore(WIDTH, K)
    few.restore(saved[:3])
    few.delete(0)
    assert saved[:3].any(dim=1).all(), "few are copied"


@pytest.mark.parametrize(("saved", "present"), [(3, 0), (100, 0), (100, 3), (3, 100), (0, 3), (65, 64), (200, 100)])
def test_state_dict_round_trip_over_stores_of_other_sizes(saved, present):
    masks, columns = _hashed(300)
    store, other = MaskStore(WIDTH, K), MaskStore(WIDTH, K)
    store.extend(masks[:saved])
    if saved:
        store.delete(1)
    other.extend(masks[100 : 100 + present])
    other.load_state_dict(store.state_dict())
    assert len(other) == int(other.count) == saved
    assert other.live == store.live
    assert torch.equal(other.masks, store.masks) and torch.equal(other.columns, store.columns)
    assert other.append(masks[299]) == saved
    assert _found(other, masks[299:]) == [saved]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda store: pickle.loads(pickle.dumps(store))])
def test_copies_are_whole_and_apart(copied):
    store, (masks, _) = MaskStore(WIDTH, K), _hashed(3)
    store.extend(masks[:2])
    store.delete(0)
    other = copied(store)
    assert other.live == [1] and other.append(masks[2]) == 2
    assert len(store) == 2 and _found(store, masks[2:]) == [-1]


def test_rows_are_columns_on_the_page_of_each_edit():
    masks, columns = _hashed(4)
    store = MaskStore(WIDTH, K)
    store.append(masks[0])
    store.extend(masks[1:], page=torch.tensor([3, 0, 3]).int())
    found = store.rows(torch.tensor([3, 0, 1]).int())
    assert torch.equal(found, columns[[3, 0, 1]] + torch.tensor([[3], [0], [3]]) * WIDTH) and found.dtype == torch.int32
    assert store.on_page(3) == [1, 3] and store.on_page(1) == [] and store.written(3) == 2
    stamp = store.stamp
    store.delete(1)
    assert store.stamp != stamp and store.on_page(3) == [3] and store.written(3) == 2
    store.delete(3)
    store.leave(3)
    assert store.on_page(3) == [] and store.written(3) == 0 and store.page[:4].tolist() == [0, -1, 0, -1]
    with pytest.raises(ValueError, match=r"page must be int32 \[2\], got int32 \[1\]"):
        store.extend(masks[:2], page=torch.ones(1).int())
    assert len(store) == 4


def test_edits_that_move_are_seen_by_their_stamp_and_other_views_keep_theirs():
    masks, columns = _hashed(3)
    store = MaskStore(WIDTH, K)
    store.extend(masks, page=torch.tensor([1, 0, 1]).int())
    buffer, stamp = store.page, store.stamp
    store.move(1, 5)
    assert store.page[:3].tolist() == [5, 0, 5] and buffer[:3].tolist() == [1, 0, 1] and store.stamp != stamp
    stamp = store.stamp
    store.replace(1, masks[2], page=2)
    assert torch.equal(store.rows(torch.tensor([1]).int()), columns[2:] + 2 * WIDTH) and store.stamp != stamp


def test_a_state_from_before_pages_has_one():
    masks, columns = _hashed(2)
    store, other = MaskStore(WIDTH, K), MaskStore(WIDTH, K)
    store.extend(masks)
    state = store.state_dict()
    del state["page"]
    state["columns"] = torch.zeros((64, K), dtype=torch.int32)
    other.extend(masks, page=4)
    other.load_state_dict(state)
    assert torch.equal(other.columns, columns)


def test_dtype_moves_leave_it_alone_and_repr():
    store, (masks, _) = MaskStore(WIDTH, K, max_edits=9), _hashed(3)
    store.extend(masks)
    store.delete(1)
    store.half().to("cpu")
    assert {buffer.dtype for buffer in store.buffers()} == {torch.int32} and not list(store.parameters())
    assert _found(store, masks) == [0, -1, 2]
    assert repr(store) == "MaskStore(edits=2, width=150, k=12, capacity=9, max_edits=9)"
