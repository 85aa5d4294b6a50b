"""Where the time of an edit goes."""

import pytest
import torch

from memoir_fast.editing.batch import Batch


def test_phases_are_timed_once_each(bench, tiny_llama, tiny_tokenizer):
    edit_phases = bench("bench_edit_phases")
    found = edit_phases.measure_phases(tiny_llama, tiny_tokenizer, edits=8, batch=2)
    for name in ("sequential", "batched"):
        figures = found[name]
        assert set(figures["phases_ms"]) == set(edit_phases.PHASES)
        assert all(spent > 0 for spent in figures["phases_ms"].values())
        assert sum(figures["shares"].values()) + figures["rest"] == pytest.approx(1)
        assert 0 <= figures["rest"] < 0.5, "most of the time must be known, and none counted twice"
        assert figures["ms_per_edit"] > 0 and figures["steps"] > 0


def test_the_clocks_are_taken_off_again(bench):
    before = (Batch.losses, torch.autograd.grad)
    with bench("bench_edit_phases").clocks(lambda: None):
        assert Batch.losses is not before[0]
    assert (Batch.losses, torch.autograd.grad) == before
