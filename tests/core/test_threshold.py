"""The threshold: against known distributions, as the store grows, saved and loaded, and on another architecture."""

import dataclasses
import math
import warnings
from types import SimpleNamespace

import pytest
import torch

from memoir_fast import RECIPES, Edit, Memoir, MemoirConfig, ops
from memoir_fast.core import threshold
from memoir_fast.core.calibration import Calibration
from memoir_fast.core.routing_code import THRESHOLD
from memoir_fast.core.threshold import best_overlaps, calibrate, due, overlap_ratios, prompt_masks
from memoir_fast.modules.code_store import CodeStore
from memoir_fast.modules.naming import SPELLINGS, TOKENS

WIDTH, K = 512, 128


class Stored:
    """Enough of a memory to calibrate on random masks."""

    def __init__(self, edits, permutation, width=WIDTH, k=K):
        from memoir_fast.modules import MemoirLinear

        self.layer = MemoirLinear(torch.nn.Linear(width, 2), k)
        masks, columns = ops.tophash(torch.randn(edits, width), k, permutation)
        self.layer.store.extend(masks)


@pytest.fixture
def permutation():
    return torch.randperm(WIDTH).int()


@pytest.fixture
def memoir(tiny_llama, tiny_tokenizer):
    return Memoir.attach(tiny_llama, tiny_tokenizer, MemoirConfig(background=8, recipe="fast", routing="paper"))


def masks_of(count, permutation):
    return ops.tophash(torch.randn(count, len(permutation)), K, permutation)[0]


def teach(memoir, count):
    """Edits without learning: random masks, and texts."""
    from memoir_fast import Edit

    layer, start = memoir.layer, len(memoir.layer.store)
    masks, columns = layer.tophash.hash(torch.randn(count, layer.in_features))
    memoir.edits.extend([Edit(f"prompt {start + index}", "target") for index in range(count)], masks)
    return start


@pytest.mark.parametrize("edits", [20, 200, 2000])
@pytest.mark.parametrize("rate", [1e-2, 1e-3])
def test_rate_holds_for_unseen_prompts(edits, rate, permutation):
    """160 prompts are far too few to count a rate of 1e-3: the fitted tail has to hold for 20,000 others."""
    stored = Stored(edits, permutation)
    found = calibrate(stored, masks_of(160, permutation), rate, probe=False)
    unseen = torch.tensor(overlap_ratios(stored, masks_of(20_000, permutation)))
    matched = float((unseen >= found.tau).double().mean())
    assert not found.counted and found.edits == edits and found.prompts == 160
    assert matched <= 4 * rate
    assert float((unseen >= found.tau - 0.06).double().mean()) > rate  # and it is not just far too high


def test_many_prompts_are_counted(permutation):
    stored, masks = Stored(50, permutation), masks_of(2000, permutation)
    found = calibrate(stored, masks, 0.01, probe=False)
    matched = sum(overlap >= found.tau for overlap in overlap_ratios(stored, masks))
    assert found.counted and 0 < matched <= 20
    next_below = found.tau - 1 / K
    assert sum(overlap >= next_below for overlap in overlap_ratios(stored, masks)) > 20


def test_drift_is_that_of_a_maximum(permutation):
    """The threshold extrapolated from 250 edits to 2,000 is near the one that is then chosen."""
    stored, masks = Stored(250, permutation), masks_of(400, permutation)
    few = calibrate(stored, masks, probe=False)
    ahead = calibrate(stored, masks, holds_until=2000, probe=False)
    more, columns = ops.tophash(torch.randn(1750, WIDTH), K, permutation)
    stored.layer.store.extend(more)
    many = calibrate(stored, masks, probe=False)
    assert few.drift > 0 and many.location > few.location
    assert few.tau < ahead.tau == pytest.approx(few.expected_tau(2000), abs=1.5 / K)
    assert ahead.tau == pytest.approx(many.tau, abs=0.03)


def test_relevant_prompts_among_the_background_do_not_bend_it(permutation):
    stored, masks = Stored(100, permutation), masks_of(160, permutation)
    clean = calibrate(stored, masks, probe=False)
    masks[:8] = stored.layer.store.masks[:8]  # their overlap is 1
    assert calibrate(stored, masks, probe=False).tau == pytest.approx(clean.tau, abs=0.02)


def test_deleted_edits_do_not_count(permutation):
    stored, masks = Stored(64, permutation), masks_of(100, permutation)
    half = Stored(1, permutation)
    half.layer.store.restore = None
    half.layer.store.truncate(0)
    half.layer.store.extend(stored.layer.store.masks[:32])
    for edit_id in range(32, 64):
        stored.layer.store.delete(edit_id)
    assert calibrate(stored, masks, probe=False) == calibrate(half, masks, probe=False)


def test_all_columns_shared(permutation):
    stored = Stored(5, torch.arange(8).int(), width=8, k=8)
    masks = ops.tophash(torch.randn(30, 8), 8, torch.arange(8).int())[0]
    assert calibrate(stored, masks, probe=False).tau == 1.0


def test_arguments(permutation):
    stored, masks = Stored(5, permutation), masks_of(20, permutation)
    for rate in (0, 0.6, -1, math.nan):
        with pytest.raises(ValueError, match=r"false_match_rate must lie in \(0, 0.5\]"):
            calibrate(stored, masks, rate, probe=False)
    with pytest.raises(ValueError, match="at least 20 irrelevant prompts, got 19"):
        calibrate(stored, masks[:19], probe=False)
    stored.layer.store.truncate(0)
    with pytest.raises(ValueError, match="at least one edit, the memory holds none"):
        calibrate(stored, masks, probe=False)


def test_auto_is_the_default_and_follows_the_store(memoir, monkeypatch):
    """Taught one by one: chosen at 16 edits, then whenever the store has outgrown the last choice."""
    assert memoir.config.tau == "auto" and memoir.tau == 0.5 and memoir.calibration is None
    chosen = []
    original = threshold.calibrate
    monkeypatch.setattr(
        threshold, "calibrate", lambda *args, **kwargs: chosen.append(original(*args, **kwargs)) or chosen[-1]
    )
    recipe = dataclasses.replace(memoir.config.learned, steps=1, prefixes=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        edits = [(f"What is the number {index}?", "Rome") for index in range(27)]
        probed = []
        for _ in memoir.edit_stream(edits, recipe=recipe):
            probed.append(memoir.calibration and memoir.calibration.rewordings_matched)
    assert [one.edits for one in chosen] == [16, 21, 27]
    assert [one.holds_until for one in chosen] == [20, 26, 34]
    assert memoir.calibration == chosen[-1] and memoir.tau == chosen[-1].tau != 0.5
    assert [one is None for one in probed] == [True] * 15 + [False] * 5 + [True] * 7, "asked of the first one alone"
    assert not due(memoir)
    assert len(memoir.background) == 160


def test_a_given_threshold_stays(tiny_llama, tiny_tokenizer):
    memoir = Memoir.attach(tiny_llama, tiny_tokenizer, MemoirConfig(background=8, tau=0.7, routing="paper"))
    recipe = dataclasses.replace(memoir.config.learned, steps=1, prefixes=0)
    memoir.edit([(f"Number {index}", "Rome") for index in range(17)], recipe=recipe, progress=False)
    assert memoir.tau == 0.7 and memoir.calibration is None


@pytest.mark.filterwarnings("ignore:paraphrases and irrelevant prompts")
def test_own_prompts_are_kept_for_later(memoir):
    teach(memoir, 40)
    prompts = [f"How far is it to {number}?" for number in range(30)]
    found = memoir.calibrate(prompts, false_match_rate=0.05)
    assert (found.prompts, found.false_match_rate, memoir.tau) == (30, 0.05, found.tau)
    assert best_overlaps(memoir, prompts) == overlap_ratios(memoir, memoir.background)
    teach(memoir, 40)
    with threshold.following(memoir):
        pass
    assert memoir.calibration.prompts == 30 and memoir.calibration.edits == 80
    assert memoir.calibration.false_match_rate == 0.05


def test_a_failed_calibration_changes_nothing(memoir):
    with pytest.raises(ValueError, match="at least one edit"):
        memoir.calibrate()
    teach(memoir, 3)
    with pytest.raises(ValueError, match="at least 20 irrelevant prompts, got 1"):
        memoir.calibrate(["Only one?"])
    assert memoir.tau == 0.5 and memoir.calibration is None and memoir.background is None


def test_warns_where_nothing_can_be_told_apart(memoir):
    """Edits with random masks: a reworded prompt is as far from its edit as any other."""
    teach(memoir, 40)
    with pytest.warns(UserWarning, match="paraphrases and irrelevant prompts can hardly be told apart: at tau = 0"):
        assert memoir.calibrate().rewordings_matched < 0.5


@pytest.mark.filterwarnings("ignore:paraphrases and irrelevant prompts")
def test_saved_with_the_memory(memoir, tiny_llama, tiny_tokenizer, tmp_path):
    teach(memoir, 20)
    found = memoir.calibrate(false_match_rate=0.01)
    assert isinstance(found, Calibration)
    memoir.save_pretrained(tmp_path / "memory")
    masks = memoir.background
    memoir.detach()
    loaded = Memoir.from_pretrained(tiny_llama, tiny_tokenizer, tmp_path / "memory")
    assert loaded.calibration == found and loaded.tau == found.tau
    assert torch.equal(loaded.background, masks)
    assert loaded.config.tau == "auto"


def test_another_architecture(tiny_tokenizer):
    """GPT-2's Conv1D keeps its weight the other way round; the mechanics are the same."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=384, n_positions=256, n_embd=32, n_layer=3, n_head=4, bos_token_id=1, eos_token_id=1, n_inner=96
    )
    model = GPT2LMHeadModel(config).eval()
    memoir = Memoir.attach(model, tiny_tokenizer, MemoirConfig(background=8, routing="paper"))
    recipe = dataclasses.replace(memoir.config.learned, steps=1, prefixes=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        memoir.edit([(f"What is the number {index}?", "Rome") for index in range(18)], recipe=recipe, progress=False)
    assert memoir.calibration.edits == 16
    taught = prompt_masks(memoir, [f"What is the number {index}?" for index in range(18)])
    assert overlap_ratios(memoir, taught) == pytest.approx([1.0] * 18, abs=0.05)


def test_with_codes_only_prompts_that_are_given_bring_it_below_the_usual(tiny_llama, tiny_tokenizer):
    memoir = Memoir.attach(tiny_llama, tiny_tokenizer, MemoirConfig(background=8, routing="early", routing_block=1))
    memoir.edit("The capital of France is", "Lyon")
    assert memoir.tau == THRESHOLD and memoir.calibrate(false_match_rate=0.5).tau == THRESHOLD
    found = memoir.calibrate([f"What is the number {index}?" for index in range(30)], false_match_rate=0.5)
    assert found.tau == memoir.tau < THRESHOLD
    assert memoir.layer.codes.min_overlap[: len(memoir.layer.codes)].min() == memoir.layer.min_overlap


def test_rows_that_an_irrelevant_prompt_would_match_are_raised_within_room(tiny_llama, tiny_tokenizer):
    memoir = Memoir.attach(tiny_llama, tiny_tokenizer, MemoirConfig(background=8, routing="early", routing_block=1))
    memoir.edit("The capital of France is", "Lyon")
    store = memoir.layer.codes
    store.room.fill_(store.k)
    asked = ["The capital of Italy is", *(f"What is the number {index}?" for index in range(29))]
    shared = store.overlaps(prompt_masks(memoir, asked)).amax(dim=0)
    memoir.calibrate(asked, false_match_rate=0.5)
    assert torch.equal(
        store.min_overlap[: len(store)], torch.maximum(shared + 1, torch.tensor(memoir.layer.min_overlap))
    )


def test_a_row_that_was_raised_is_so_again(tiny_llama, tiny_tokenizer):
    recipe = dataclasses.replace(RECIPES["fast"], prefixes=0, rewordings=0, questions=0, steps=1)
    memoir = Memoir.attach(tiny_llama, tiny_tokenizer, MemoirConfig(background=8, k=16, tau=0.5, recipe=recipe))
    memoir.edit("The capital of France is", "Rome")
    rows = memoir.layer.codes.min_overlap
    rows[0] += 2
    before = rows.clone()
    with pytest.raises(KeyError), threshold.or_as_before(memoir):
        memoir.layer.tau = 0.9
        assert not torch.equal(rows, before)
        raise KeyError
    assert memoir.tau == 0.5 and torch.equal(rows, before)


@pytest.mark.parametrize("without", [0, 1, 2])
def test_few_rows_without_a_subject_are_enough_to_choose(without):
    store = CodeStore(WIDTH, K, 20)
    made = ops.tophash(torch.randn(40, WIDTH), K, torch.randperm(WIDTH).int())[0]
    names = torch.full((16, SPELLINGS, TOKENS), -1, dtype=torch.int32)
    names[without:, 0, 0] = 3
    store.add(torch.arange(16).int(), made[:16], torch.zeros(16).int(), torch.full((16,), K).int(), names)
    memoir = SimpleNamespace(layer=SimpleNamespace(searched=store, store=SimpleNamespace(live=range(16))))
    found = calibrate(memoir, made[16:], 1e-2, probe=False)
    overlap = store.overlaps(made[16:])
    best = overlap.amax(dim=1) / K
    assert overlap.shape[1] == (without or 16) and found.tau > float(best.quantile(0.9))
    assert (found.drift == 0) == (without == 1), "one row does not tell how the best of many moves"


def test_rewordings_of_edits_with_a_subject_have_to_reach_their_lower_threshold(monkeypatch):
    edits = [Edit(f"The colour of {name} is", "red", subject=name) for name in ("tea", "snow")]
    memoir = SimpleNamespace(layer=SimpleNamespace(codes=SimpleNamespace(k=440)), edits=dict(enumerate(edits)))
    monkeypatch.setattr(threshold, "best_overlaps", lambda *_: [0.52, 0.51])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert threshold.rewordings_matched(memoir, 0.59) == 1.0
    memoir.edits[1] = dataclasses.replace(edits[1], subject="")
    with pytest.warns(UserWarning, match="only 50%"):
        assert threshold.rewordings_matched(memoir, 0.59) == 0.5
