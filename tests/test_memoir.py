"""`Memoir`: attach, edit, delete, detach, and everything that must not change on the way."""

import dataclasses
import logging

import pytest
import torch

from memoir_fast import Edit, Memoir, MemoirConfig
from memoir_fast.editing import context, fast, teacher
from memoir_fast.editing.active_rows import ActiveRowsLearned
from memoir_fast.errors import MemoirError, StoreFullError, UnknownEditError, UnsupportedModelError
from memoir_fast.modules import MaskStore
from memoir_fast.recipe import RECIPES

LAYER = "model.layers.1.mlp.down_proj"
RECIPE = dataclasses.replace(RECIPES["fast"], prefixes=1, steps=20)
CONFIG = MemoirConfig(layer=LAYER, k=16, recipe=RECIPE, prefix_tokens=3, background=10, tau=0.95)
FACT, OTHER = ("The capital of France is", "Lyon"), ("Who wrote the play?", "a camel")


@pytest.fixture
def memoir(tiny_llama, tiny_tokenizer):
    """An empty memory on the tiny Llama."""
    return Memoir.attach(tiny_llama, tiny_tokenizer, CONFIG)


@pytest.fixture
def logits(tiny_llama, tiny_tokenizer):
    """A function prompt -> the model's logits."""

    def run(prompt, model=tiny_llama):
        with torch.no_grad():
            return model(tiny_tokenizer(prompt, return_tensors="pt").input_ids).logits

    return run


def _state(memoir):
    """Everything that an edit may change."""
    store = memoir.layer.store
    return (
        memoir.layer.memory.weight.clone(),
        store.masks[: len(store)].clone(),
        store.columns[: len(store)].clone(),
        int(store.count),
        len(store),
        store.live,
        dict(memoir.edits),
        list(memoir.layer._replaced),
    )


def _same(found, expected):
    return all(
        torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
        for one, other in zip(found, expected, strict=True)
    )


def _anatomy(model):
    return [
        (name, id(module), module.training, len(module._forward_hooks), len(module._forward_pre_hooks))
        for name, module in model.named_modules()
    ], sorted(model.__dict__)


def test_detach_leaves_the_very_same_model(tiny_llama, tiny_tokenizer, logits):
    anatomy, state = _anatomy(tiny_llama), {name: value.clone() for name, value in tiny_llama.state_dict().items()}
    before = logits("The sky")
    memoir = Memoir.attach(tiny_llama, tiny_tokenizer, CONFIG)
    memoir.edit(*FACT)
    assert _anatomy(tiny_llama) != anatomy
    assert memoir.detach() is tiny_llama
    assert _anatomy(tiny_llama) == anatomy and "generate" not in tiny_llama.__dict__
    after = tiny_llama.state_dict()
    assert list(after) == list(state) and all(torch.equal(after[name], value) for name, value in state.items())
    assert torch.equal(logits("The sky"), before)
    again = Memoir.attach(tiny_llama, tiny_tokenizer, CONFIG)
    assert again.status().edits == 0 and again.edit(*FACT).edit_id == 0


def test_detach_gives_back_a_generate_of_the_models_own(tiny_llama, tiny_tokenizer):
    def own(*args, **kwargs):
        return type(tiny_llama).generate(tiny_llama, *args, **kwargs)

    tiny_llama.generate = own
    memoir = Memoir.attach(tiny_llama, tiny_tokenizer, CONFIG)
    assert tiny_llama.generate is not own
    memoir.detach()
    assert tiny_llama.generate is own


def test_a_second_memory_is_refused_and_harms_nothing(memoir, tiny_tokenizer):
    memoir.edit(*FACT)
    state, anatomy = _state(memoir), _anatomy(memoir.model)
    with pytest.raises(MemoirError, match="has a memory already; detach"):
        Memoir.attach(memoir.model, tiny_tokenizer, CONFIG)
    assert _same(_state(memoir), state) and _anatomy(memoir.model) == anatomy


@pytest.mark.parametrize(
    ("config", "error", "text"),
    [
        (CONFIG.replace(k=49), ValueError, r"k must lie in \[1, D = 48\]"),
        (CONFIG.replace(layer="model.nothing"), ValueError, "no layer 'model.nothing'"),
        (CONFIG.replace(layer="model.norm"), TypeError, "must be a linear layer"),
    ],
)
def test_settings_that_do_not_fit_leave_the_model_alone(tiny_llama, tiny_tokenizer, config, error, text):
    anatomy = _anatomy(tiny_llama)
    with pytest.raises(error, match=text):
        Memoir.attach(tiny_llama, tiny_tokenizer, config)
    assert _anatomy(tiny_llama) == anatomy


def test_an_unknown_architecture_is_refused_by_name(tiny_llama, tiny_tokenizer):
    tiny_llama.config.model_type = "novel"
    with pytest.raises(UnsupportedModelError, match="no preset for model type 'novel'"):
        Memoir.attach(tiny_llama, tiny_tokenizer)
    assert Memoir.attach(tiny_llama, tiny_tokenizer, CONFIG).status().model_type == "novel"


@pytest.mark.parametrize("prompts", [[], ["The sky"]])
def test_attach_that_fails_half_way_takes_the_memory_off_again(tiny_llama, tiny_tokenizer, prompts):
    anatomy = _anatomy(tiny_llama)
    tiny_llama.model.embed_tokens.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN|finite"):
        Memoir.attach(tiny_llama, tiny_tokenizer, CONFIG, irrelevant=prompts)
    assert _anatomy(tiny_llama) == anatomy


def test_one_edit_by_strings_or_as_an_edit_and_many_as_pairs(memoir):
    first = memoir.edit(*FACT)
    assert (first.edit_id, first.prompt, first.target, first.replaced) == (0, *FACT, False)
    assert first.steps > 0 and first.seconds > 0 and first.learned == (first.loss <= RECIPE.bar)
    assert memoir.edit(Edit(*OTHER)).edit_id == 1
    many = memoir.edit([("The sky is", "Greek"), Edit("The town is", "old")], progress=False)
    assert [one.edit_id for one in many] == [2, 3]
    assert memoir.edit([]) == []
    assert memoir.edits == {
        0: Edit(*FACT),
        1: Edit(*OTHER),
        2: Edit("The sky is", "Greek"),
        3: Edit("The town is", "old"),
    }
    assert [one.edit_id for one in memoir.edit_stream(iter([("A", "b"), ("C", "d")]))] == [4, 5]


def test_an_edit_changes_its_prompt_and_no_unmatched_one(memoir, logits):
    before = logits(FACT[0]), logits("The sky")
    memoir.edit(*FACT)
    assert not torch.equal(logits(FACT[0]), before[0]) and memoir.last_routes == [(0, 1.0)]
    assert torch.equal(logits("The sky"), before[1]) and memoir.last_routes[0].edit_id == -1


def test_delete_restores_every_bit_and_editing_again_gets_a_new_id(memoir, logits):
    before = logits(FACT[0])
    memoir.edit([FACT, OTHER], progress=False)
    other = logits(OTHER[0])
    memoir.delete(0)
    assert torch.equal(logits(FACT[0]), before) and torch.equal(logits(OTHER[0]), other)
    assert list(memoir.edits) == [1]
    for unknown in (0, 2, -1):
        with pytest.raises(UnknownEditError, match=f"no live edit has the id {unknown}"):
            memoir.delete(unknown)
    with pytest.raises(UnknownEditError):
        memoir.routed(0)
    again = memoir.edit(*FACT)
    assert (again.edit_id, again.replaced) == (2, False)


def test_editing_a_prompt_again_replaces_its_edit(memoir, logits):
    memoir.edit([FACT, OTHER], progress=False)
    before = logits(FACT[0])
    result = memoir.edit(FACT[0], "Rome")
    assert (result.edit_id, result.replaced) == (0, True)
    assert len(memoir.layer.store) == 2 and memoir.edits[0] == Edit(FACT[0], "Rome")
    assert not torch.equal(logits(FACT[0]), before) and memoir.last_routes == [(0, 1.0)]


@pytest.mark.parametrize("batch", [1, 3])
def test_one_prompt_twice_in_one_call_ends_with_the_later_answer(memoir, batch):
    results = memoir.edit([FACT, OTHER, (FACT[0], "Rome")], batch=batch, progress=False)
    assert [(one.edit_id, one.replaced) for one in results] == [(0, False), (1, False), (0, True)]
    assert memoir.edits == {0: Edit(FACT[0], "Rome"), 1: Edit(*OTHER)} and len(memoir.layer.store) == 2


BAD = {
    "empty prompt": (("", "Lyon"), ValueError, "an edit's prompt must not be empty, got ''"),
    "blank target": (("The sky is", " \n"), ValueError, "an edit's target must not be empty, got ' .n'"),
    "no target": (("The sky is", None), TypeError, r"edit\(prompt, target\) needs a target, got None"),
    "other type": (("The sky is", 3), TypeError, "an edit's target must be a string, got int"),
    "too long": (("The sky " * 200, "Lyon"), ValueError, r"tokens, the model's context holds 256: 'The sky"),
    "not pairs": ((["The sky is"],), TypeError, "an edit is an Edit or a .prompt, target. pair, got 'The sky is'"),
    "bad in a list": (([FACT, ("The sky is", "")],), ValueError, "an edit's target must not be empty"),
    "long in a list": (([FACT, ("The sky " * 200, "x")],), ValueError, "the model's context holds 256"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("recipe", ["paper", "fast"])
def test_bad_requests_have_their_own_text_and_leave_the_memory_alone(memoir, name, recipe):
    request, error, text = BAD[name]
    memoir.edit(*OTHER)
    state = _state(memoir)
    with pytest.raises(error, match=text):
        memoir.edit(*request, recipe=dataclasses.replace(RECIPES[recipe], prefixes=1))
    assert _same(_state(memoir), state)


def test_an_unknown_recipe_is_refused(memoir):
    with pytest.raises(ValueError, match="recipe must be one of fast, fast-stop, paper or a Recipe, got 'quick'"):
        memoir.edit(*FACT, recipe="quick")


def test_a_target_without_tokens_is_refused(memoir):
    class Deaf:
        def __init__(self, tokenizer):
            self._tokenizer = tokenizer

        def __call__(self, text, **settings):
            return self._tokenizer(text.replace(" Lyon", ""), **settings)

        def __getattr__(self, name):
            return getattr(self._tokenizer, name)

    memoir.tokenizer = Deaf(memoir.tokenizer)
    state = _state(memoir)
    with pytest.raises(ValueError, match="the target 'Lyon' has no tokens after the prompt 'The capital of France is'"):
        memoir.edit(*FACT)
    assert _same(_state(memoir), state)


@pytest.mark.parametrize(("recipe", "batch"), [("paper", 1), ("fast", 1), ("fast", 2)])
def test_activations_that_are_not_finite_are_refused(memoir, recipe, batch):
    memoir.edit(*OTHER)
    state = _state(memoir)
    memoir.model.model.layers[0].mlp.up_proj.weight.data[3] = float("nan")
    settings = dataclasses.replace(RECIPES[recipe], prefixes=1)
    with pytest.raises(ValueError, match="activations on 'The capital of France is' must be finite, got NaN"):
        memoir.edit([FACT, ("The sky is", "Greek")], recipe=settings, batch=batch, progress=False)
    assert _same(_state(memoir), state)


def test_a_full_store_is_refused_before_anything_is_learned(tiny_llama, tiny_tokenizer):
    memoir = Memoir.attach(tiny_llama, tiny_tokenizer, CONFIG.replace(max_edits=2))
    memoir.edit(*FACT)
    state = _state(memoir)
    with pytest.raises(StoreFullError, match="holds 1 of max_edits = 2, 2 more do not fit"):
        memoir.edit([OTHER, ("The sky is", "Greek")], progress=False)
    assert _same(_state(memoir), state)
    memoir.edit(*OTHER)
    assert memoir.edit(FACT[0], "Rome").replaced


def _interrupted(monkeypatch, place, at=2):
    """Makes Ctrl-C arrive at one moment of an edit, by default of the second."""
    calls = []

    def once(function):
        def wrapped(*args, **kwargs):
            calls.append(1)
            result = function(*args, **kwargs)
            if len(calls) == at:
                raise KeyboardInterrupt
            return result

        return wrapped

    if place == "hashed":
        monkeypatch.setattr(context.EditContext, "hashed", once(context.EditContext.hashed))
    elif place == "learned":
        monkeypatch.setattr(fast, "learn", once(fast.learn))
    elif place == "written":
        monkeypatch.setattr(ActiveRowsLearned, "write", once(ActiveRowsLearned.write))
    elif place == "appended":
        monkeypatch.setattr(MaskStore, "append", once(MaskStore.append))
    elif place == "reported":
        monkeypatch.setattr(teacher, "EditResult", once(teacher.EditResult))


@pytest.mark.parametrize("place", ["hashed", "learned", "written", "appended", "reported"])
@pytest.mark.parametrize("again", [False, True])
def test_ctrl_c_leaves_the_memory_as_after_the_last_finished_edit(memoir, monkeypatch, place, again):
    """Also where the edit that is cut short was to replace another."""
    if again:
        memoir.edit(*FACT)
    second = (FACT[0] if again and place != "appended" else "The sky is", "Greek")
    finished = []
    stream = memoir.edit_stream([OTHER, second, ("The town is", "old")])
    _interrupted(monkeypatch, place)
    with pytest.raises(KeyboardInterrupt):
        for result in stream:
            finished.append(result.prompt)
            state = _state(memoir)
    monkeypatch.undo()
    assert finished == [OTHER[0]] and _same(_state(memoir), state)
    assert len(memoir.edits) == len(memoir.layer.store) == 1 + again
    result = memoir.edit(*second)
    assert (result.edit_id, result.replaced) == ((0, True) if second[0] == FACT[0] else (1 + again, False))


def test_ctrl_c_in_the_midst_of_a_list_keeps_what_was_finished(memoir, monkeypatch):
    _interrupted(monkeypatch, "written")
    with pytest.raises(KeyboardInterrupt):
        memoir.edit([OTHER, FACT, ("The town is", "old")], progress=False)
    assert memoir.edits == {0: Edit(*OTHER)} and memoir.layer.store.live == [0]


@pytest.mark.parametrize("prompt", [OTHER[0], FACT[0]])
def test_ctrl_c_in_the_last_moment(memoir, monkeypatch, prompt):
    memoir.edit(*FACT)
    state = _state(memoir)
    _interrupted(monkeypatch, "reported", at=1)
    with pytest.raises(KeyboardInterrupt):
        memoir.edit(prompt, "Rome")
    assert _same(_state(memoir), state) and memoir.edits.id_of(OTHER[0]) is None


def test_an_edit_deleted_while_a_stream_runs_is_gone_for_good(memoir):
    stream = memoir.edit_stream([FACT, OTHER, (FACT[0], "Rome")])
    assert next(stream).edit_id == 0
    memoir.delete(0)
    assert [(one.edit_id, one.replaced) for one in stream] == [(1, False), (2, False)]
    assert memoir.layer.store.live == sorted(memoir.edits) == [1, 2]


def test_status(memoir):
    memoir.edit([FACT, OTHER], progress=False)
    memoir.delete(0)
    status = memoir.status()
    assert dataclasses.asdict(status) | {"backends": None} == {
        "model_type": "llama",
        "layer": LAYER,
        "further": (),
        "edits": 1,
        "deleted": 1,
        "k": 16,
        "width": 48,
        "outputs": 32,
        "tau": 0.95,
        "dtype": "float32",
        "device": "cpu",
        "memory_bytes": 48 * 32 * 4,
        "pages": 1,
        "page_edits": 32,
        "store_bytes": 64 * (4 + 1 + 1 + 2) * 4 + 64 * (48 + 3) * 4 + 4,
        "bytes_per_edit": (4 + 1 + 1 + 2) * 4 + (48 + 3) * 4,
        "backends": None,
        "banks": {"": 1},
    }


def test_nothing_is_printed_and_the_root_logger_is_left_alone(memoir, capsys):
    handlers, level = list(logging.getLogger().handlers), logging.getLogger().level
    memoir.edit([FACT, OTHER], progress=False)
    memoir.delete(0)
    memoir.status()
    memoir.detach()
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == ""
    assert (list(logging.getLogger().handlers), logging.getLogger().level) == (handlers, level)


def test_the_progress_bar_counts_edits_on_stderr(memoir, capsys):
    memoir.edit([FACT, OTHER])
    captured = capsys.readouterr()
    assert captured.out == "" and "editing: 100%" in captured.err and "2/2" in captured.err
    memoir.edit("The sky is", "Greek")
    assert capsys.readouterr().err == ""


def test_tau_of_the_config_is_in_force(tiny_llama, tiny_tokenizer):
    for given, used in ((1, 1.0), (0.25, 0.25)):
        memoir = Memoir.attach(tiny_llama, tiny_tokenizer, CONFIG.replace(tau=given))
        assert memoir.tau == used
        memoir.detach()


def test_mu_comes_from_the_prompts_that_the_user_gives(tiny_llama, tiny_tokenizer):
    one = Memoir.attach(tiny_llama, tiny_tokenizer, CONFIG, irrelevant=["The sky"]).layer.mu.clone()
    assert one.abs().sum() > 0


def test_a_model_that_changes_dtype_takes_its_memory_along(memoir, logits):
    memoir.edit(*FACT)
    memoir.model.bfloat16()
    assert memoir.layer.memory.weight.dtype == torch.bfloat16 and memoir.layer.mu.dtype == torch.float32
    assert logits(FACT[0]).isfinite().all()
    assert memoir.last_routes[0].edit_id in (0, -1) and memoir.last_routes[0].overlap > 0.5
    assert memoir.edit(*OTHER).edit_id == 1
