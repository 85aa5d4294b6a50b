"""Taking another memory over: what is compared, and which sequences may go on."""

import copy
import dataclasses

import pytest
import torch

from memoir_fast import MemoirConfig
from memoir_fast.errors import MemoirError, WrongModelError
from memoir_fast.io import checkpoint, durable, renewal
from memoir_fast.io.renewal import Files, Renewed, Source


def test_a_saved_state_is_taken_over(memoir, saved):
    memoir.edit([("The river is", "wide"), ("Who wrote the play?", "Bob")], progress=False)
    memoir.delete(0)
    store, edits = memoir.layer.store, memoir.edits
    other = renewal.beside(memoir, checkpoint.read(saved), [])
    assert memoir.layer.store is store and 0 not in memoir.edits, "it is as it was"
    written = memoir.layer.written
    assert renewal.take_over(memoir, other) == Renewed(added=[0], deleted=[3, 4])
    assert memoir.edits is edits and sorted(edits) == [0, 2] and memoir.layer.store is not store
    assert memoir.layer.written > written, "what was learned on the old one is learned again"
    assert memoir.edits.id_of("The river is") is None and memoir.edits.gone == {}
    assert len(memoir.layer.store) == 3 and memoir.layer.store.live == [0, 2]


def test_an_edit_s_other_target_is_a_change_and_its_time_none(memoir, saved):
    found = checkpoint.read(saved)
    found.edits[0] = dataclasses.replace(found.edits[0], target="Bob")
    found.edits[2] = dataclasses.replace(found.edits[2], taught_at=5.0)
    assert renewal.take_over(memoir, renewal.beside(memoir, found, [])) == Renewed(changed=[0])
    assert memoir.edits[2].taught_at == 5.0


@pytest.mark.parametrize("change", ["seed", "mu", "model", "graph"])
def test_another_memory_is_refused(memoir, saved, monkeypatch, change):
    found, error, match = checkpoint.read(saved), MemoirError, "holds another memory than it did"
    if change == "seed":
        found = dataclasses.replace(found, config=found.config.replace(seed=7))
    elif change == "mu":
        found.tensors["mu"] = found.tensors["mu"] + 1
    elif change == "model":
        error, match = WrongModelError, "weight"
        found.fingerprint["weight_sha256"] = "0" * 64
    else:
        match = "a captured graph may read the memory where it is"
        monkeypatch.setattr(memoir.layer.memory, "max_pages", 4)
        monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda _: True))
    with pytest.raises(error, match=match):
        renewal.beside(memoir, found, [])


def test_a_route_goes_on_where_its_number_is_the_same_edit_s(memoir, saved):
    stamp = memoir.layer.store.stamp
    memoir.edit([("The river is", "wide"), ("The town is", "old")], progress=False)
    route = torch.tensor([0, 1, 2, 3, 4, -1], dtype=torch.int32)
    assert memoir.layer.store.still(route, stamp).tolist()[:5] == [True, False, True, True, True]
    renewal.take_over(memoir, renewal.beside(memoir, checkpoint.read(saved), []))
    between = memoir.layer.store.stamp
    memoir.edit("The sky is", "green")
    store = memoir.layer.store
    assert len(store) == 4
    assert store.still(route, stamp).tolist()[:5] == [True, False, True, False, False], "3 is another edit now"
    assert store.still(route, between).tolist()[:5] == [True, False, True, True, False]


def test_many_renewals_are_remembered_together(memoir, saved):
    first = memoir.layer.store.stamp
    memoir.edit("The river is", "wide")
    for _ in range(12):
        renewal.take_over(memoir, renewal.beside(memoir, checkpoint.read(saved), []))
        memoir.edit("The sky is", "green")
    route = torch.tensor([0, 3], dtype=torch.int32)
    assert memoir.layer.store.still(route, first).tolist() == [True, False]
    assert memoir.layer.store.still(route, memoir.layer.store.stamp).tolist() == [True, True]
    assert len(memoir.layer.store._successions) < 12


def test_a_smaller_memory_has_rows_for_the_ids_of_the_larger(memoir, saved):
    masks = torch.zeros(200, memoir.layer.store.masks.shape[1], dtype=torch.int32)
    masks[:, 0] = (1 << 12) - 1
    memoir.layer.store.extend(masks)
    route = torch.tensor([150, 0], dtype=torch.int32)
    stamp = memoir.layer.store.stamp
    renewal.take_over(memoir, renewal.beside(memoir, checkpoint.read(saved), []))
    assert memoir.layer.store.still(route, stamp).tolist() == [False, True]


def test_files_and_source_tell_what_has_changed(memoir, saved, tiny_tokenizer, tiny_llama):
    files = Files.at(saved)
    source = Source.of(memoir, saved, files)
    source.require_unchanged(memoir)
    assert files == Files.of(*_pair(saved)) and files.journal is None and source.is_at(saved)
    tau = memoir.layer.tau
    for change, back in (
        (lambda: setattr(memoir.layer, "tau", 0.6), lambda: setattr(memoir.layer, "tau", tau)),
        (lambda: memoir.delete(0), lambda: None),
    ):
        change()
        with pytest.raises(MemoirError, match="was changed since it was loaded"):
            source.require_unchanged(memoir)
        back()
    memoir.save_pretrained(saved)
    assert Files.at(saved) != files and Source.now(memoir, saved).files == Files.at(saved)
    assert Source.now(memoir, saved.parent) is None and not source.is_at(saved.parent)


def _pair(folder):
    found, journal = durable.read_pair(folder)
    return found.checksum, journal


def test_settings_come_too_but_for_the_check(memoir, saved):
    memoir.config = memoir.config.replace(check=False, page_edits=7)
    other = renewal.beside(memoir, checkpoint.read(saved), [])
    renewal.take_over(memoir, other)
    assert isinstance(memoir.config, MemoirConfig) and memoir.config.page_edits != 7 and not memoir.config.check
    assert copy.deepcopy(memoir).config == memoir.config
