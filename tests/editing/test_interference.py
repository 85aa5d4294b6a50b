"""What earlier edits read holds later updates back, there and nowhere else."""

import dataclasses

import pytest
import torch

from memoir_fast import RECIPES, Edit, Memoir, MemoirConfig, Recipe
from memoir_fast.editing import active_rows, fast
from memoir_fast.editing.interference import Interference, triangular_inverse
from memoir_fast.hf.partial_forward import layer_input

FACTS = [("The capital of France is", "Lyon"), ("Who wrote the play?", "Bob"), ("The sky is", "green")]


def test_damping_is_the_ridge_solution():
    torch.manual_seed(0)
    interference, columns = Interference(), torch.tensor([1, 4, 6, 7]).int()
    first = torch.randn(5, 3)
    interference.add(9, torch.tensor([4, 6, 8]).int(), first)
    read = torch.zeros(4, 9, dtype=torch.float64)
    read[:, [4, 6, 8]] = first[1:].double()  # the first token is left out
    moments = (read.mT @ read)[columns.long()][:, columns.long()]
    level = moments.diagonal().mean()
    update = torch.randn(4, 2, dtype=torch.float64)
    # minimises |damped - update|^2 + (strength / level) |read @ damped|^2
    expected = torch.linalg.solve(torch.eye(4, dtype=torch.float64) + 2.0 / level * moments, update)
    found = interference.damping(columns, 2.0).double() @ update
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.equal(found[[0, 3]].float(), update[[0, 3]].float()), "columns that nobody reads are free"
    assert (read[:, columns.long()] @ found).norm() < 0.5 * (read[:, columns.long()] @ update).norm()


def test_nothing_to_damp():
    interference, columns = Interference(), torch.tensor([0, 2]).int()
    assert interference.damping(columns, 1.0) is None
    interference.add(9, torch.tensor([4, 6]).int(), torch.ones(3, 2))
    assert interference.damping(columns, 1.0) is None, "no column is shared"
    assert interference.damping(torch.tensor([4, 5]).int(), 0.0) is None


def _memory(llama, tokenizer, damping, folder=None):
    recipe = dataclasses.replace(RECIPES["fast"], steps=6, prefixes=1, damping=damping)
    memoir = Memoir.attach(llama, tokenizer, MemoirConfig(k=24, tau=0.9, recipe=recipe))
    memoir.edit(FACTS[:2], progress=False)
    if folder is not None:
        memoir.save_pretrained(folder)
        memoir = Memoir.from_pretrained(memoir.detach(), tokenizer, folder)
    memoir.edit(*FACTS[2])
    weight = memoir.layer.memory.weight.clone()
    memoir.detach()
    return weight


def test_a_loaded_memory_holds_back_as_before(tiny_llama, tiny_tokenizer, tmp_path):
    kept = _memory(tiny_llama, tiny_tokenizer, 1.0)
    assert torch.allclose(kept, _memory(tiny_llama, tiny_tokenizer, 1.0, tmp_path), atol=1e-6)
    assert not torch.allclose(kept, _memory(tiny_llama, tiny_tokenizer, 0.0), atol=1e-3)


def test_nothing_is_left_of_an_edit_that_was_taken_out():
    torch.manual_seed(0)
    interference, alone = Interference(), Interference()
    first, second = torch.tensor([1, 4, 6, 7]).int(), torch.tensor([0, 4, 7, 8]).int()
    large, small = torch.randn(50, 4) * 30, torch.randn(5, 4)
    interference.add(9, first, large)
    interference.remove(first, large * (1 + 1e-7))  # run in another batch, it is rounded otherwise
    assert interference.damping(first, 1.0) is None
    for one in (interference, alone):
        one.add(9, second, small)
    interference.add(9, first, large)
    interference.remove(first, large * (1 + 1e-7))
    assert interference.damping(torch.tensor([1, 6]).int(), 1.0) is None, "the other edit owns none of these"
    assert torch.allclose(interference.damping(first, 1.0), alone.damping(first, 1.0), atol=0.02)


def test_rounding_that_outweighs_what_is_left_stops_no_edit():
    interference, columns = Interference(), torch.tensor([0, 1]).int()
    interference.add(2, columns, torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    interference._moments += torch.tensor([[0.0, 5.0], [5.0, 0.0]])  # no moments of anything
    assert interference.damping(columns, 1.0) is None


def _moments(memoir, recipes, without=()):
    """Second moments of what the live edits read, each on its plain row by its own recipe, from their texts alone.

    Rounded as what is counted is.
    """
    expected = torch.zeros(memoir.layer.in_features, memoir.layer.in_features)
    for edit_id, edit in memoir.edits.items():
        if edit_id in without:
            continue
        ids = torch.tensor([memoir.rows(edit, recipes[edit_id])[0].ids])
        x = layer_input(memoir.model, memoir.layer, input_ids=ids, attention_mask=torch.ones_like(ids))[0, 1:]
        x = x.bfloat16().float()
        own = memoir.layer.store.columns[edit_id].long()
        expected[own[:, None], own] += x[:, own].mT @ x[:, own]
    return expected


def _counted(memoir):
    """The moments that the memory holds back by, and the least of their eigenvalues, in units of the largest."""
    moments = memoir._context.interference.of(0)[0]._moments
    eigenvalues = torch.linalg.eigvalsh(moments.double())
    return moments, float(eigenvalues[0] / eigenvalues[-1])


def _agree(found, expected, share=1e-4):
    return torch.allclose(found, expected, rtol=share, atol=share * float(expected.max()))


def test_deleted_and_replaced_edits_hold_nothing_back(tiny_llama, tiny_tokenizer):
    recipe = dataclasses.replace(RECIPES["fast"], steps=2, prefixes=1)
    memoir = Memoir.attach(tiny_llama, tiny_tokenizer, MemoirConfig(k=24, tau=0.9, recipe=recipe))
    memoir.edit(FACTS[:2], progress=False)
    memoir.delete(0)
    memoir.edit([(FACTS[1][0], "Eve"), FACTS[2]], progress=False)
    assert memoir.edits == {1: Edit(FACTS[1][0], "Eve"), 2: Edit(*FACTS[2])}
    assert _agree(_counted(memoir)[0], _moments(memoir, {1: recipe, 2: recipe}))
    memoir.detach()


@pytest.mark.parametrize("batch", [1, 2])
def test_an_edit_is_not_held_back_by_the_one_that_it_replaces(tiny_llama, tiny_tokenizer, monkeypatch, batch):
    """Nor by any that is replaced in its batch; where it is not learned after all, those are counted again."""
    recipe = dataclasses.replace(RECIPES["fast"], steps=2, prefixes=1, batch=batch)
    memoir = Memoir.attach(tiny_llama, tiny_tokenizer, MemoirConfig(k=24, tau=0.9, recipe=recipe))
    memoir.edit(FACTS[:3], progress=False)
    learn, seen = fast.learn, []

    def noted(*arguments):
        seen.append(_counted(memoir)[0].clone())
        if len(seen) == 1:
            raise RuntimeError("no memory left")
        return learn(*arguments)

    monkeypatch.setattr(fast, "learn", noted)
    anew = [(prompt, "Eve") for prompt, _ in FACTS[:batch]]
    with pytest.raises(RuntimeError, match="no memory left"):
        memoir.edit(anew, progress=False)
    memoir.edit("Who sang it?", "Ann", progress=False)
    recipes = dict.fromkeys(range(4), recipe)
    assert _agree(seen[1], _moments(memoir, recipes, without=[3])), "all three are counted again"
    assert _agree(seen[0], _moments(memoir, recipes, without=[*range(batch), 3]))
    memoir.edit(anew, progress=False)
    assert _agree(seen[2], _moments(memoir, recipes, without=range(batch))) and len(seen) == 3
    assert _agree(_counted(memoir)[0], _moments(memoir, recipes))
    memoir.detach()


def test_what_was_closed_by_the_end_token_is_taken_out_with_it(tiny_llama, tiny_tokenizer):
    """Whatever recipe teaches next, an edit is taken out as it was counted."""
    recipe = dataclasses.replace(RECIPES["fast"], steps=2, prefixes=1)
    stop = dataclasses.replace(recipe, stop=True)
    memoir = Memoir.attach(tiny_llama, tiny_tokenizer, MemoirConfig(k=24, tau=0.9, recipe=recipe))
    memoir.edit(FACTS, progress=False)
    memoir.delete(0)
    memoir.delete(2)
    memoir.edit("The town is", "old", recipe=stop)
    memoir.delete(1)
    memoir.edit("The river is", "wide", recipe=recipe)
    moments, least = _counted(memoir)
    assert least > -1e-5 and _agree(moments, _moments(memoir, {3: stop, 4: recipe}))
    memoir.detach()


@pytest.mark.parametrize("again", ["fast", "paper"])
def test_a_replaced_edit_is_taken_out_at_the_columns_that_it_had(tiny_llama, tiny_tokenizer, tmp_path, again):
    """In another dtype a prompt may be hashed to other columns; its earlier edit's are those to take out."""
    recipe = dataclasses.replace(RECIPES["fast"], steps=2, prefixes=1)
    memoir = Memoir.attach(tiny_llama, tiny_tokenizer, MemoirConfig(k=24, tau=0.9, recipe=recipe))
    memoir.edit(FACTS, progress=False)
    memoir.save_pretrained(tmp_path)
    memoir = Memoir.from_pretrained(memoir.detach().bfloat16(), tiny_tokenizer, tmp_path)
    memoir.edit("The river is", "wide")  # from here on the loaded edits are counted
    before = memoir.layer.store.columns[0].clone()
    memoir.edit(FACTS[0][0], "Rome", recipe=dataclasses.replace(RECIPES[again], steps=2, prefixes=1))
    assert not torch.equal(memoir.layer.store.columns[0], before), "the prompt is hashed as ever: this tests nothing"
    memoir.edit("The town is", "old")
    paper = dataclasses.replace(RECIPES["paper"], prefixes=0)  # its rows are not closed either
    recipes = dict.fromkeys(memoir.edits, recipe) | {0: recipe if again == "fast" else paper}
    assert _agree(_counted(memoir)[0], _moments(memoir, recipes), 0.02), "apart by more than bfloat16's rounding"
    memoir.detach()


def test_holding_back_on_tensor_cores_teaches_the_same(tiny_llama, tiny_tokenizer, monkeypatch):
    """In bfloat16, as on a GPU: the moves change by its rounding, and the rows stay what the loss has seen."""
    kept = _memory(tiny_llama, tiny_tokenizer, 1.0)
    monkeypatch.setattr(active_rows, "_damping_dtype", lambda _: torch.bfloat16)
    rounded = _memory(tiny_llama, tiny_tokenizer, 1.0)
    assert 0 < float((rounded - kept).norm() / kept.norm()) < 0.01


@pytest.mark.parametrize("settings", [{"damping": -1.0, "optimizer": "adam"}, {"damping": 1.0, "optimizer": "sgd"}])
def test_settings_that_mean_nothing(settings):
    with pytest.raises(ValueError, match="damping must be at least 0, and 0 without adam"):
        Recipe("fast", steps=3, learning_rate=0.1, **settings)


@pytest.mark.parametrize("size", [1, 7, 512, 513, 1300])
def test_a_triangle_is_inverted_by_halves(size):
    reads = torch.randn(2 * size, size, dtype=torch.float64)
    factor = torch.linalg.cholesky(torch.eye(size, dtype=torch.float64) + reads.mT @ reads / size)
    inverse = triangular_inverse(factor)
    assert torch.equal(inverse, inverse.tril())
    torch.testing.assert_close(factor @ inverse, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-7)
