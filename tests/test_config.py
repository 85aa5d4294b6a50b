"""`MemoirConfig`: what it takes, what it refuses, and the way to JSON and back."""

import dataclasses
import json

import pytest

from memoir_fast import MemoirConfig
from memoir_fast.recipe import RECIPES, Recipe


@pytest.mark.parametrize("tau", [0, -0.1, 1.1, float("nan"), float("inf"), "0.5", "automatic", True, [0.5]])
def test_tau_outside_of_its_range_is_refused(tau):
    with pytest.raises(ValueError, match=r"tau must lie in \(0, 1\] or be 'auto', got "):
        MemoirConfig(tau=tau)


@pytest.mark.parametrize(("given", "kept"), [(1, 1.0), (0.25, 0.25), (1.0, 1.0), ("auto", "auto"), (None, None)])
def test_tau_is_kept_as_a_float(given, kept):
    config = MemoirConfig(tau=given)
    assert config.tau == kept and type(config.tau) is type(kept)


@pytest.mark.parametrize(
    ("name", "value"),
    [("k", 0), ("k", -3), ("k", 2.5), ("k", "8"), ("k", True), ("prefix_tokens", 0)]
    + [("background", 0), ("max_edits", 0), ("max_edits", 1.0)],
)
def test_whole_numbers_are_checked_by_name(name, value):
    with pytest.raises(ValueError, match=f"{name} must be a whole number of at least [01], got {value!r}"):
        MemoirConfig(**{name: value})


@pytest.mark.parametrize("recipe", ["quick", "", None, 3, {"method": "paper"}])
def test_an_unknown_recipe_is_refused(recipe):
    with pytest.raises(ValueError, match="recipe must be one of fast, fast-stop, paper or a Recipe, got "):
        MemoirConfig(recipe=recipe)


def test_a_recipe_by_name_or_as_it_is():
    own = Recipe("fast", steps=5, learning_rate=0.1)
    assert MemoirConfig(recipe="fast").learned is RECIPES["fast"]
    assert MemoirConfig(recipe=own).learned is own
    assert MemoirConfig(recipe="fast").replace(recipe="paper").learned is RECIPES["paper"]


def test_the_published_settings():
    paper = RECIPES["paper"]
    assert (paper.steps, paper.learning_rate, paper.clip, paper.weight_decay) == (30, 1.0, 1.0, 1e-5)
    assert (paper.settled, paper.bar, paper.batch) == (1e-4, 0.02, 1)
    assert MemoirConfig().background == 100


@pytest.mark.parametrize(
    "config",
    [
        MemoirConfig(),
        MemoirConfig(layer="a.b", k=7, tau=0.45, seed=3, prefix_tokens=4, max_edits=9),
        MemoirConfig(layer="a.1.b", further=("a.2.b", "a.3.b")),
        MemoirConfig(further=2),
        MemoirConfig(recipe=Recipe("fast", steps=5, learning_rate=0.1, settled=0.5)),
        MemoirConfig(recipe=Recipe("fast", steps=5, learning_rate=0.1)),
    ],
)
def test_to_json_and_back(config):
    back = MemoirConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert back == config and back.learned == config.learned


def test_settings_of_a_newer_version_are_left_out_with_a_warning():
    values = {**MemoirConfig(k=5).to_dict(), "zeal": 3, "ardour": None}
    with pytest.warns(UserWarning, match="left out: ardour, zeal; a newer version"):
        assert MemoirConfig.from_dict(values) == MemoirConfig(k=5)


def test_it_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        MemoirConfig().k = 3
    assert MemoirConfig().replace(k=3).k == 3
    with pytest.raises(ValueError, match="k must be"):
        MemoirConfig().replace(k=0)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"steps": 0}, "steps >= 1"),
        ({"learning_rate": 0.0}, "learning_rate > 0"),
        ({"bar": -1.0}, "bar >= 0"),
        ({"method": "slow"}, "method is paper or fast"),
        ({"optimizer": "lion"}, "optimizer sgd or adam"),
        ({"method": "paper", "batch": 2}, "published loop is SGD on one edit at a time"),
        ({"method": "paper", "optimizer": "adam"}, "published loop is SGD"),
        ({"weight_decay": 1e-5}, "only method='paper' has it"),
        ({"batch": 0}, "batch >= 1.*, got .*0"),
        ({"clip": 0.0}, "clip must be positive or None, got 0.0"),
    ],
)
def test_recipes_that_make_no_sense(changes, text):
    with pytest.raises(ValueError, match=text):
        Recipe(**{"method": "fast", "steps": 3, "learning_rate": 0.1, **changes})


def test_several_layers_are_not_learned_by_sgd_in_its_dual_form():
    sgd = Recipe("fast", steps=5, learning_rate=0.1)
    with pytest.raises(ValueError, match="several layers cannot be learned by SGD in its dual form.* take optimizer="):
        MemoirConfig(recipe=sgd, further=1)
    assert MemoirConfig(recipe="paper", further=1).further == MemoirConfig(further=1).further == 1


def test_the_check_is_no_property_of_a_memory():
    config = MemoirConfig(check=False)
    assert "check" not in config.to_dict() and config == MemoirConfig()
    assert MemoirConfig.from_dict(config.to_dict()).check and config.replace(k=3).check is False
