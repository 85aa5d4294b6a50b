"""Which edits there are: added, replaced, deleted and rolled back as one, and what of them is counted."""

import copy

import pytest
import torch

from memoir_fast import Edit, MemoirLinear
from memoir_fast.core.live_edits import LiveEdits
from memoir_fast.core.reads import Reads
from memoir_fast.errors import StoreFullError, UnknownEditError
from memoir_fast.modules.code_store import CodeStore

FIRST, SECOND = Edit("The capital of France is", "Lyon"), Edit("Who wrote the play?", "Bob")


@pytest.fixture
def layer():
    return MemoirLinear(torch.nn.Linear(64, 4), k=8, tau=0.9, max_edits=3)


@pytest.fixture
def hashed(layer):
    """Masks and columns of four prompts."""
    masks, columns = layer.hash(torch.randn(4, 5, 64))
    return list(zip(masks, columns, strict=True))


def put(edits, edit, hashed):
    with edits.put(edit, hashed[0]) as edit_id:
        return edit_id


def state(edits, layer):
    store = layer.store
    rows = store.masks[: len(store)].clone(), store.columns[: len(store)].clone()
    return [dict(edits), [edits.id_of(edit.prompt) for edit in (FIRST, SECOND)], store.live, len(store), *rows]


def agree(found, expected):
    pairs = zip(found, expected, strict=True)
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


def test_it_reads_as_a_mapping(layer, hashed):
    edits = LiveEdits(layer)
    assert edits == {} and put(edits, FIRST, hashed[0]) == 0 and put(edits, SECOND, hashed[1]) == 1
    assert edits == {0: FIRST, 1: SECOND} and list(edits.items()) == [(0, FIRST), (1, SECOND)] and 2 not in edits
    assert edits.id_of(SECOND.prompt) == 1 and edits.id_of("another") is None
    assert layer.store.match(torch.stack([mask for mask, _ in hashed[:2]]))[0].tolist() == [0, 1]
    with pytest.raises(TypeError):
        edits[3] = FIRST


def test_the_same_prompt_replaces_and_keeps_its_id(layer, hashed):
    edits = LiveEdits(layer)
    put(edits, FIRST, hashed[0])
    assert put(edits, Edit(FIRST.prompt, "Rome"), hashed[1]) == 0 and edits[0].target == "Rome" and len(edits) == 1
    assert torch.equal(layer.store.columns[0], hashed[1][1])


@pytest.mark.parametrize("again", [False, True])
def test_a_block_that_raises_changes_nothing(layer, hashed, again):
    edits = LiveEdits(layer)
    put(edits, FIRST, hashed[0])
    edits.count(0, stop=True)
    before = state(edits, layer)
    new = Edit(FIRST.prompt, "Rome") if again else SECOND
    with pytest.raises(KeyboardInterrupt), edits.put(new, hashed[1][0], 1):
        raise KeyboardInterrupt
    assert agree(state(edits, layer), before) and edits.gone == {} and edits.uncounted(0) == {}


def test_a_full_store_changes_nothing(layer, hashed):
    edits = LiveEdits(layer)
    for number in range(3):
        put(edits, Edit(f"prompt {number}", "x"), hashed[number])
    before = state(edits, layer)
    with pytest.raises(StoreFullError), edits.put(FIRST, hashed[3][0]):
        pass
    assert agree(state(edits, layer), before)


def test_a_deleted_edit_is_gone_and_its_id_is_not_given_again(layer, hashed):
    edits = LiveEdits(layer)
    put(edits, FIRST, hashed[0])
    edits.delete(0)
    assert edits == {} and edits.id_of(FIRST.prompt) is None and put(edits, FIRST, hashed[0]) == 1
    with pytest.raises(UnknownEditError):
        edits.delete(0)
    assert edits == {1: FIRST}


def test_what_is_counted_is_kept_as_it_was_until_it_is_taken_out(layer, hashed):
    edits = LiveEdits(layer)
    put(edits, FIRST, hashed[0])
    put(edits, SECOND, hashed[1])
    assert edits.uncounted(0) == {0: FIRST, 1: SECOND} and edits.uncounted(1) == {}
    edits.count(0, stop=True)
    edits.reads = {0: Reads(torch.ones(2, 3), True), 1: Reads(torch.zeros(2, 3), True)}
    assert edits.uncounted(0) == {1: SECOND}
    put(edits, Edit(FIRST.prompt, "Rome"), hashed[2])
    ((edit, stop, columns, page, reads),) = edits.gone[0]
    assert page == 0 and edit == FIRST and stop and torch.equal(columns, hashed[0][1]) and reads.inputs.all()
    edits.delete(1)
    assert len(edits.gone[0]) == 1, "it was never counted"
    assert not edits.reads


def test_what_is_read_is_let_go_by_pages(layer, hashed):
    edits = LiveEdits(layer)
    for page, edit in enumerate((FIRST, SECOND)):
        with edits.put(edit, hashed[page][0], page):
            pass
    edits.reads = {0: Reads(torch.ones(2, 3), True), 1: Reads(torch.zeros(2, 3), True)}
    edits.forget_reads(1)
    assert list(edits.reads) == [0]
    edits.restore({0: FIRST})
    assert not edits.reads


def test_the_prompts_that_an_edit_may_know_of(layer, hashed):
    edits = LiveEdits(layer)
    for edit, (mask, _) in zip((FIRST, SECOND), hashed, strict=False):
        put(edits, edit, (mask,))
    third = Edit("Where is it?", "Here")
    assert list(edits.beside(third)) == [FIRST.prompt, SECOND.prompt] and list(edits.beside(FIRST)) == [SECOND.prompt]
    put(edits, Edit(third.prompt, "There", bank="acme"), hashed[2])
    assert len(edits.beside(Edit("new", "x"))) == 2 and third.prompt not in edits.beside(
        Edit("new", "x", bank="globex")
    )
    assert third.prompt in edits.beside(Edit("new", "x", bank="acme")) and len(edits.beside(third)) == 2
    edits.delete(0)
    assert list(edits.beside(Edit("new", "x", bank="acme"))) == [SECOND.prompt, third.prompt]


def test_a_replaced_edit_may_move_to_another_page(layer, hashed):
    edits = LiveEdits(layer)
    put(edits, FIRST, hashed[0])
    edits.count(0, stop=False)
    with edits.put(Edit(FIRST.prompt, "Rome"), hashed[0][0], page=2) as edit_id:
        pass
    assert edit_id == 0 and layer.store.on_page(2) == [0] and [one.page for one in edits.gone[0]] == [0]
    edits.count(0, stop=False)
    edits.uncount(0)
    assert edits.gone == {} and edits.uncounted(2) == {}
    edits.uncount(2)
    assert edits.uncounted(2) == {0: Edit(FIRST.prompt, "Rome")}


def test_many_at_once(layer, hashed):
    edits = LiveEdits(layer)
    masks = torch.stack([mask for mask, _ in hashed[:2]])
    assert edits.extend([FIRST, SECOND], masks) == range(2) and edits == {0: FIRST, 1: SECOND}
    before = state(edits, layer)
    for wrong in ([SECOND, Edit("new", "x")], [Edit("new", "x")] * 2, [Edit("new", "x")]):
        with pytest.raises(ValueError, match="edits with new prompts and as many masks"):
            edits.extend(wrong, masks)
    assert agree(state(edits, layer), before)


def test_a_copy_is_about_the_copied_layer(layer, hashed):
    edits = LiveEdits(layer)
    put(edits, FIRST, hashed[0])
    other, copied = copy.deepcopy((layer, edits))
    copied.delete(0)
    assert edits == {0: FIRST} and layer.store.live == [0] and other.store.live == [] and copied == {}


def test_many_at_once_need_masks_to_route_by(layer, hashed):
    layer.codes = CodeStore(64, 8, 4)
    masks = torch.stack([mask for mask, _ in hashed[:2]])
    with pytest.raises(ValueError, match="routing='paper'"):
        LiveEdits(layer).extend([FIRST, SECOND], masks)
    with pytest.raises(ValueError, match="needs routing codes"):
        put(LiveEdits(layer), FIRST, hashed[0])
    assert len(layer.store) == 0 and len(layer.codes) == 0
