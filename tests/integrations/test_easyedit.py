"""The bridge to EasyEdit, against the shapes that its source documents; EasyEdit itself is not needed."""

import json
import sys
import types

import pytest
import torch

from memoir_fast import MemoirError
from memoir_fast.core.scoring import target_accuracy
from memoir_fast.integrations.easyedit import (
    MemoirHyperParams,
    apply_memoir_to_model,
    edit_and_measure,
    memory_of,
    register,
)

YAML = """
alg_name: "MEMOIR"
model_name: "./some/llama"
device: cpu
max_length: 30
batch_size: 1
model_parallel: false
inner_params:
- model.layers[2].mlp.down_proj.weight
k: 12
tau: 0.9
recipe: fast
edit_lr: 5e-2
n_iter: 200
"""
REQUESTS = [
    {
        "prompt": "The capital of France is",
        "target_new": "Rome",
        "ground_truth": "Paris",
        "subject": "France",
        "rephrase_prompt": "Which town is the capital of France?",
        "portability": {"hop": {"prompt": ["The river of the capital is"], "ground_truth": ["Greek"]}},
        "locality": {"neighborhood": {"prompt": ["0123 0123 0123", "Hm"], "ground_truth": ["the river", "yes"]}},
    },
    {
        "prompt": "The colour of {} is",
        "subject": "the sky",
        "target_new": " old",
        "ground_truth": None,
        "portability": {},
        "locality": {"neighborhood": {"prompt": "Who wrote the play?", "ground_truth": "London"}},
    },
]

# as EasyEdit 14cea82 describes them
META = {
    "rewrite": {
        "result_key": "rewrite_acc",
        "protocol": "decoder_only_teacher_forcing",
        "scorer": "token_accuracy",
        "comparable_group": "lm.decoder_only_teacher_forcing.token_accuracy",
    },
    "rephrase": {
        "result_key": "rephrase_acc",
        "protocol": "decoder_only_teacher_forcing",
        "scorer": "token_accuracy",
        "comparable_group": "lm.decoder_only_teacher_forcing.token_accuracy",
    },
    "locality.neighborhood": {
        "result_key": "locality.neighborhood_acc",
        "protocol": "pre_post_argmax_token_match",
        "scorer": "token_match",
        "comparable_group": "locality.lm.pre_post_argmax_token_match",
    },
}


@pytest.fixture
def hparams(tmp_path):
    path = tmp_path / "memoir.yaml"
    path.write_text(YAML)
    return MemoirHyperParams.from_hparams(str(path))


def logits(model, tokenizer, text):
    with torch.no_grad():
        return model(torch.tensor([tokenizer(text).input_ids])).logits


def test_hparams(hparams, tmp_path):
    assert (hparams.alg_name, hparams.device, hparams.batch_size) == ("MEMOIR", "cpu", 1)
    config = hparams.config
    assert (config.layer, config.k, config.tau) == ("model.layers.2.mlp.down_proj", 12, 0.9)
    assert (config.learned.steps, config.learned.learning_rate, config.learned.method) == (200, 0.05, "fast")
    assert MemoirHyperParams.from_hparams(str(tmp_path / "memoir")) == hparams  # as EasyEdit's examples name them
    assert MemoirHyperParams(k=12.0, n_iter=3.0).k == 12  # EasyEdit's reader makes every number a float
    assert MemoirHyperParams().config.layer is None


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (YAML + "mask_ratio: 0.2\n", TypeError, "hparams of MEMOIR have no mask_ratio"),
        (YAML.replace('"MEMOIR"', "WISE"), ValueError, "alg_name must be MEMOIR, got 'WISE'"),
        ("- a\n- b\n", TypeError, "must hold a mapping, got list"),
        (YAML.replace("- model", "- a.weight\n- model"), ValueError, "inner_params must name one weight"),
    ],
)
def test_hparams_that_do_not_fit(tmp_path, text, error, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(error, match=message):
        MemoirHyperParams.from_hparams(str(path))


def test_applied_as_easyedit_calls_it_and_undone(tiny_llama, tiny_tokenizer, hparams):
    before = logits(tiny_llama, tiny_tokenizer, REQUESTS[0]["prompt"])
    weights = {name: value.clone() for name, value in tiny_llama.state_dict().items()}
    keywords = {"copy": False, "return_orig_weights": True, "keep_original_weight": False, "train_ds": None}
    model, restore = apply_memoir_to_model(tiny_llama, tiny_tokenizer, [REQUESTS[0]], hparams, **keywords)
    assert model is tiny_llama
    assert target_accuracy(memory_of(model), [("The capital of France is", "Rome")]) == [1.0]
    assert all(torch.equal(model.state_dict()[name], value) for name, value in weights.items())
    with torch.no_grad():
        restore()
    assert memory_of(model) is None
    assert torch.equal(logits(tiny_llama, tiny_tokenizer, REQUESTS[0]["prompt"]), before)


@pytest.mark.parametrize("target", ["Rome", " Rome"])
def test_a_target_may_begin_with_a_space(tiny_llama, tiny_tokenizer, hparams, target):
    """EasyEdit puts one before targets; what the model then says is the same."""
    model, _ = apply_memoir_to_model(tiny_llama, tiny_tokenizer, [{**REQUESTS[0], "target_new": target}], hparams)
    ids = tiny_tokenizer(REQUESTS[0]["prompt"], return_tensors="pt").input_ids
    wanted = tiny_tokenizer(" Rome").input_ids
    output = model.generate(ids, max_new_tokens=len(wanted), do_sample=False, pad_token_id=0)
    assert output[0, ids.shape[1] :].tolist() == wanted
    assert memory_of(model).edits[0].target == target


def test_sequential_calls_share_one_memory(tiny_llama, tiny_tokenizer, hparams):
    _, first = apply_memoir_to_model(tiny_llama, tiny_tokenizer, [REQUESTS[0]], hparams)
    memoir = memory_of(tiny_llama)
    _, second = apply_memoir_to_model(tiny_llama, tiny_tokenizer, [REQUESTS[1]], hparams)
    assert memory_of(tiny_llama) is memoir
    assert [edit.prompt for edit in memoir.edits.values()] == ["The capital of France is", "The colour of the sky is"]
    second()
    assert list(memoir.edits) == [0] and memory_of(tiny_llama) is memoir
    first()
    first()  # a second time does nothing
    assert memory_of(tiny_llama) is None


def test_undoing_a_re_edit_brings_the_earlier_one_back(tiny_llama, tiny_tokenizer, hparams):
    apply_memoir_to_model(tiny_llama, tiny_tokenizer, [REQUESTS[0]], hparams)
    _, restore = apply_memoir_to_model(tiny_llama, tiny_tokenizer, [{**REQUESTS[0], "target_new": "Greek"}], hparams)
    memoir = memory_of(tiny_llama)
    assert [edit.target for edit in memoir.edits.values()] == ["Greek"]
    restore()
    assert [edit.target for edit in memoir.edits.values()] == ["Rome"]


@pytest.mark.parametrize("evaluate", ["end", "each"])
def test_metrics_have_the_documented_shape(tiny_llama, tiny_tokenizer, hparams, evaluate):
    metrics = edit_and_measure(tiny_llama, tiny_tokenizer, REQUESTS, hparams, evaluate=evaluate)
    json.dumps(metrics)
    assert [one["case_id"] for one in metrics] == [0, 1]
    assert [one["requested_rewrite"] for one in metrics] == REQUESTS
    first, second = metrics
    taught = metrics if evaluate == "each" else [second]  # in so small a layer the second edit harms the first
    assert all(one["post"]["rewrite_acc"] == [1.0] != one["pre"]["rewrite_acc"] for one in taught)
    assert len(first["post"]["rephrase_acc"]) == 1 and "rephrase_acc" not in second["post"]
    assert len(first["post"]["portability"]["hop_acc"]) == 1
    outputs = first["pre"]["locality"]["neighborhood_output"]
    assert [type(token) for row in outputs for token in row] == [int] * sum(map(len, outputs))
    assert first["post"]["locality"]["neighborhood_acc"] == [1.0, 1.0]
    assert second["post"]["locality"]["neighborhood_acc"] == [1.0]
    assert [one.keys() for one in metrics] == [{"pre", "case_id", "requested_rewrite", "post"}] * 2
    always = {"rewrite_acc", "metric_meta", "locality", "portability"}
    assert [one[when].keys() - always for one in metrics for when in ("pre", "post")] == [{"rephrase_acc"}] * 2 + [
        set()
    ] * 2
    assert first["pre"]["locality"].keys() == {"neighborhood_output"}
    assert first["post"]["locality"].keys() == {"neighborhood_output", "neighborhood_acc"}
    assert first["post"]["locality"]["neighborhood_output"] == outputs and len(outputs) == 2
    assert first["pre"]["metric_meta"] == {name: META[name] for name in ("rewrite", "rephrase")}
    assert first["post"]["metric_meta"] == META
    assert second["pre"]["metric_meta"] == {"rewrite": META["rewrite"]}


@pytest.fixture
def easyeditor(monkeypatch):
    """The modules of EasyEdit that `register` reads, with the tables as 14cea82 has them."""
    modules = {name: types.ModuleType(name) for name in ("easyeditor", "easyeditor.editors", "easyeditor.util")}
    for name in ("easyeditor.editors.utils", "easyeditor.util.alg_dict"):
        modules[name] = types.ModuleType(name)
    for name, module in modules.items():
        module.__path__ = []
        monkeypatch.setitem(sys.modules, name, module)
    modules["easyeditor.editors.utils"].CALLABLE_RESTORE_ALGS = {"KN", "GRACE", "WISE", "DEFER"}
    modules["easyeditor.util.alg_dict"].ALG_DICT = {"WISE": None}
    return modules


def test_registers_itself(easyeditor):
    register()
    table = easyeditor["easyeditor.util.alg_dict"].ALG_DICT
    assert table == {"WISE": None, "MEMOIR": apply_memoir_to_model}
    restored = easyeditor["easyeditor.editors.utils"].CALLABLE_RESTORE_ALGS
    assert restored == {"KN", "GRACE", "WISE", "DEFER", "MEMOIR"}  # else the model would not be restored by the call


def test_registers_with_a_version_that_has_no_table_of_restoring_calls(easyeditor):
    del easyeditor["easyeditor.editors.utils"].CALLABLE_RESTORE_ALGS
    register()
    assert easyeditor["easyeditor.util.alg_dict"].ALG_DICT["MEMOIR"] is apply_memoir_to_model


def test_register_without_easyedit(monkeypatch):
    monkeypatch.setitem(sys.modules, "easyeditor", None)
    with pytest.raises(ImportError):
        register()


def test_requests_that_cannot_be_served(tiny_llama, tiny_tokenizer, hparams):
    with pytest.raises(ValueError, match="copy=True cannot be served"):
        apply_memoir_to_model(tiny_llama, tiny_tokenizer, REQUESTS, hparams, copy=True)
    with pytest.raises(ValueError, match="a request needs 'target_new'"):
        apply_memoir_to_model(tiny_llama, tiny_tokenizer, [{"prompt": "x"}], hparams)
    with pytest.raises(ValueError, match="evaluate must be 'end' or 'each', got 'never'"):
        edit_and_measure(tiny_llama, tiny_tokenizer, REQUESTS, hparams, evaluate="never")
    assert memory_of(tiny_llama) is None
    bad = {**REQUESTS[0], "locality": {"n": {"prompt": ["a", "b"], "ground_truth": ["c"]}}}
    with pytest.raises(ValueError, match="'n' has 2 prompts and 1 answers"):
        edit_and_measure(tiny_llama, tiny_tokenizer, [bad], hparams)
    assert memory_of(tiny_llama).edits == {}


def test_other_hparams_objects_and_models_with_a_memory(tiny_llama, tiny_tokenizer, hparams):
    from memoir_fast import Memoir

    plain = types.SimpleNamespace(**vars(hparams), save_path=None)
    apply_memoir_to_model(tiny_llama, tiny_tokenizer, REQUESTS[:1], plain)[1]()
    Memoir.attach(tiny_llama, tiny_tokenizer, hparams.config)
    with pytest.raises(MemoirError, match="has a memory already"):
        apply_memoir_to_model(tiny_llama, tiny_tokenizer, REQUESTS[:1], plain)
