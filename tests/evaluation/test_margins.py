"""Margins against overlaps that forward passes tell, with thresholds of single edits; and their plot."""

import pytest
import torch

from memoir_fast import Memoir, MemoirConfig
from memoir_fast.evaluation import margins as margins_file
from memoir_fast.evaluation import plots
from memoir_fast.evaluation.margins import margins
from memoir_fast.io.readers import Case

K = 12
NEAR = ("The capital of Spain is", "old")
CASES = [
    Case(
        *("The capital of France is", "Rome"),
        paraphrases=("What is the capital town of France?", "Hm 0123"),
        locality=(NEAR, ("the river", "town")),
        neighbours=(NEAR,),
    ),
    Case("Who wrote the play?", "camel", paraphrases=("Which author wrote the play?",)),
]


@pytest.fixture
def memoir(tiny_llama, tiny_tokenizer):
    return Memoir.attach(tiny_llama, tiny_tokenizer, MemoirConfig(tau=0.9, k=K, background=8, routing="paper"))


def route(memoir, prompt):
    with torch.no_grad():
        memoir.model(torch.tensor([memoir.tokenizer(prompt).input_ids]))
    return memoir.last_routes[0]


def test_margins_decide_the_routes_of_a_memory_with_one_edit(memoir):
    (case, _) = CASES
    memoir.edit(case.prompt, case.target)
    prompts = (case.prompt, *case.paraphrases, NEAR[0])
    best = [route(memoir, prompt).overlap for prompt in prompts]
    for bits in (K, round(K * best[1]), 1):  # to the bit: the paraphrase just reaches its edit
        memoir.layer.store.set_min_overlap(bits, 0)
        found = margins(memoir, CASES)  # the second case is not stored
        values = [*found["edits"], *found["paraphrases"], *found["neighbours"]]
        assert values == pytest.approx([overlap - bits / K for overlap in best])
        assert [value >= 0 for value in values] == [route(memoir, prompt).edit_id == 0 for prompt in prompts]
        assert [len(found[kind]) for kind in margins_file.KINDS] == [1, 2, 1]


def test_each_edit_has_its_own_threshold(memoir, monkeypatch):
    memoir.edit([case.edit for case in CASES], progress=False)
    memoir.layer.store.set_min_overlap(3, 1)
    found = margins(memoir, CASES)
    assert found["edits"] == pytest.approx([1 - 11 / K, 1 - 3 / K])
    monkeypatch.setattr(margins_file, "_AT_ONCE", 2)
    assert margins(memoir, CASES) == found
    memoir.delete(0)
    assert margins(memoir, CASES) == {
        "edits": found["edits"][1:],
        "paraphrases": found["paraphrases"][2:],
        "neighbours": [],
    }


def test_nothing_stored(memoir):
    assert margins(memoir, CASES) == {"edits": [], "paraphrases": [], "neighbours": []}


def test_plot():
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    draw = plots.PLOTS["margins"]
    assert draw({"margins": {"edits": [], "paraphrases": [], "neighbours": []}}) is None
    given = {"edits": [0.5] * 4, "paraphrases": [0.25, -0.25], "neighbours": [-0.5]}
    (axes,) = draw({"margins": given}).axes
    for bars, values in zip(axes.containers, given.values(), strict=True):
        assert sum(bar.get_height() for bar in bars) == pytest.approx(1)  # none lies outside the bins
        middle = sum(bar.get_height() * (bar.get_x() + bar.get_width() / 2) for bar in bars)
        assert middle == pytest.approx(sum(values) / len(values), abs=bars[0].get_width())
    assert [line.get_xdata() for line in axes.lines] == [[0, 0]]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert {"edits (4)", "paraphrases (2)", "neighbours (1)", "threshold"} == set(labels)
