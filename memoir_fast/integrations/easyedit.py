"""MEMOIR as an algorithm of EasyEdit: its hyper-parameters, its requests, its call, its metrics.

EasyEdit is cloned, not installed; nothing here imports it, but `register`.

    import memoir_fast.integrations.easyedit as bridge
    bridge.register()
    hparams = bridge.MemoirHyperParams.from_hparams("memoir.yaml")
    metrics, model, _ = BaseEditor.from_hparams(hparams).edit(prompts=..., target_new=..., sequential_edit=True)

EasyEdit's own evaluation runs prompt and target through the model as one text and tells nobody where the target starts:
the target takes part in the route. `edit_and_measure` returns the same metrics with the route decided on the prompt
alone, as it is when the model answers.
"""

import dataclasses
import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from memoir_fast.config import MemoirConfig
from memoir_fast.core.edit import Edit, subject_in
from memoir_fast.core.scoring import agreement, teacher_forced
from memoir_fast.io.fields import Pair
from memoir_fast.memoir import Memoir
from memoir_fast.recipe import RECIPES

NAME = "MEMOIR"
_BRACKETS = re.compile(r"\[(\d+)\]")
_ATTRIBUTE = "memoir_fast_memory"  # of a model that was given a memory here


@dataclass
class MemoirHyperParams:
    """What an hparams YAML holds. EasyEdit reads the common fields; the rest is a `MemoirConfig`."""

    alg_name: str = NAME
    model_name: Any = ""
    """A name or path, or a (model, tokenizer) tuple, with which EasyEdit edits but does not evaluate."""
    device: int | str = 0
    inner_params: Sequence[str] = ()
    """The edited weight, as EasyEdit writes it: `model.layers[27].mlp.down_proj.weight`. Empty: the preset's."""
    max_length: int = 30
    batch_size: int = 1
    model_parallel: bool = False
    fp16: bool = False
    use_chat_template: bool = False
    evaluation_type: str | None = None
    api_key: str | None = None
    k: int | None = None
    tau: float | str | None = None
    recipe: str = "fast"
    n_iter: int | None = None
    """Most steps per edit. Default: the recipe's."""
    edit_lr: float | None = None
    """Default: the recipe's."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.alg_name.upper() != NAME:
            raise ValueError(f"alg_name must be {NAME}, got {self.alg_name!r}")
        if len(self.inner_params) > 1:
            raise ValueError(f"inner_params must name one weight, got {list(self.inner_params)}")
        for name in ("k", "n_iter", "seed", "max_length", "batch_size"):
            value = getattr(self, name)
            if isinstance(value, float):  # EasyEdit's own reader makes every number a float
                setattr(self, name, int(value))

    @classmethod
    def from_hparams(cls, path: str) -> "MemoirHyperParams":
        """Reads a YAML file, with or without its suffix.

        Raises:
            TypeError: a key that is not known, or a file that is no mapping.
            ValueError: a value that does not fit.
            OSError: the file cannot be read.
        """
        file = Path(path)
        if file.suffix not in (".yaml", ".yml"):
            file = file.with_name(file.name + ".yaml")
        values = _yaml(file.read_text(encoding="utf-8"))
        if not isinstance(values, Mapping):
            raise TypeError(f"{file} must hold a mapping, got {type(values).__name__}")
        unknown = sorted(map(str, set(values) - {field.name for field in fields(cls)}))
        if unknown:
            raise TypeError(f"{file}: hparams of {NAME} have no {', '.join(unknown)}")
        return cls(**{name: _number(value) for name, value in values.items()})

    @property
    def config(self) -> MemoirConfig:
        """The memory's settings."""
        layer = None
        if self.inner_params:
            layer = _BRACKETS.sub(r".\1", self.inner_params[0]).removesuffix(".weight")
        if self.recipe not in RECIPES:
            raise ValueError(f"recipe must be one of {', '.join(sorted(RECIPES))}, got {self.recipe!r}")
        recipe = RECIPES[self.recipe]
        if self.n_iter is not None:
            recipe = dataclasses.replace(recipe, steps=self.n_iter)
        if self.edit_lr is not None:
            recipe = dataclasses.replace(recipe, learning_rate=self.edit_lr)
        return MemoirConfig(layer=layer, k=self.k, tau=self.tau, seed=self.seed, recipe=recipe)


def apply_memoir_to_model(
    model: Any,
    tok: Any,
    requests: Sequence[Mapping[str, Any]],
    hparams: Any,
    copy: bool = False,
    return_orig_weights: bool = True,
    keep_original_weight: bool = False,
    **_: Any,
) -> tuple[Any, Callable[[], None]]:
    """Teaches `requests` to the model, which gets a memory at the first call and keeps it.

    Args:
        model, tok: a causal language model of transformers and its tokenizer.
        requests (sequence of dict): each with `prompt` and `target_new`; a `subject` fills `{}` in the prompt, and is
            that of the edit where the prompt names it beside other words.
        hparams: `MemoirHyperParams`, or anything with its fields.
        copy: a copy of the model cannot share the memory; True is refused.
        return_orig_weights, keep_original_weight: accepted; base weights never change.

    Returns:
        (model, restore): the same model, and a function that takes the edits of this call back. A memory that then has
        no edit left is taken off.

    Raises:
        ValueError: a request without prompt or target, or copy=True.
    """
    if copy:
        raise ValueError("copy=True cannot be served: edits lie beside the weights; the returned function undoes them")
    edits = [_edit(request) for request in requests]
    memoir = memory_of(model) or _attach(model, tok, hparams)
    before = dict(memoir.edits)
    results = memoir.edit(edits, progress=False)

    def restore() -> None:
        for edit_id in {result.edit_id for result in results}:
            if edit_id in memoir.edits:
                memoir.delete(edit_id)
        again = [before[result.edit_id] for result in results if result.edit_id in before]
        if again:  # edits that this call had replaced are learned anew
            memoir.edit(again, progress=False)
        if not memoir.edits and memory_of(model) is memoir:
            delattr(model, _ATTRIBUTE)
            memoir.detach()

    return model, restore


def memory_of(model: Any) -> Memoir | None:
    """The memory that `apply_memoir_to_model` gave to a model, if any."""
    return getattr(model, _ATTRIBUTE, None)


def register() -> None:
    """Adds MEMOIR to EasyEdit's table of algorithms, and to those whose edits are undone by a call.

    EasyEdit evaluates with the model's name: `model_name` must be a path whose name tells the family, such as `llama`.

    Raises:
        ImportError: `easyeditor` cannot be imported; its clone must be on sys.path.
    """
    importlib.import_module("easyeditor.util.alg_dict").ALG_DICT[NAME] = apply_memoir_to_model
    undone_by_call = getattr(importlib.import_module("easyeditor.editors.utils"), "CALLABLE_RESTORE_ALGS", None)
    if undone_by_call is not None:  # earlier versions have no such table: there, edit with sequential_edit=True
        undone_by_call.add(NAME)


def edit_and_measure(
    model: Any,
    tok: Any,
    requests: Sequence[Mapping[str, Any]],
    hparams: Any,
    *,
    evaluate: str = "end",
    batch: int = 8,
) -> list[dict[str, Any]]:
    """Teaches requests one after another and returns EasyEdit's metrics, a dictionary per request.

    Args:
        model, tok, requests, hparams: as in `apply_memoir_to_model`; requests may have `rephrase_prompt`, and
            `locality` and `portability`, each {key: {prompt, ground_truth}} with a text or a list of texts.
        evaluate (str): "end": all after all edits; "each": each after its own edit. Default: "end".
        batch (int): texts per forward pass. Default: 8.
    """
    if evaluate not in ("end", "each"):
        raise ValueError(f"evaluate must be 'end' or 'each', got {evaluate!r}")
    edits = [_edit(request) for request in requests]
    memoir = memory_of(model) or _attach(model, tok, hparams)
    with memoir.disabled():
        metrics: list[dict[str, Any]] = [
            {"case_id": place, "requested_rewrite": dict(request), "pre": _scores(memoir, edit, request, batch, None)}
            for place, (edit, request) in enumerate(zip(edits, requests, strict=True))
        ]
    old = [one["pre"]["locality"] for one in metrics]
    if evaluate == "end":
        memoir.edit(edits, progress=False)
    for one, edit, request, outputs in zip(metrics, edits, requests, old, strict=True):
        if evaluate == "each":
            memoir.edit(edit)
        one["post"] = _scores(memoir, edit, request, batch, outputs)
    return metrics


def _scores(
    memoir: Memoir,
    edit: Edit,
    request: Mapping[str, Any],
    batch: int,
    old: Mapping[str, list[list[int]]] | None,
) -> dict[str, Any]:
    """One request's metrics; `old` holds what the unedited model says on its locality prompts, None: this is it."""
    scores: dict[str, Any] = {
        "rewrite_acc": _accuracy(memoir, [(edit.prompt, edit.target)], batch),
        "metric_meta": {"rewrite": _forced("rewrite")},
        "locality": {},
        "portability": {},
    }
    if request.get("rephrase_prompt"):
        pairs = [(text, edit.target) for text in _listed(request["rephrase_prompt"])]
        scores["rephrase_acc"] = _accuracy(memoir, pairs, batch)
        scores["metric_meta"]["rephrase"] = _forced("rephrase")
    for key, pairs in _pairs(request.get("portability")).items():
        scores["portability"][f"{key}_acc"] = _accuracy(memoir, pairs, batch)
    for key, pairs in _pairs(request.get("locality")).items():
        outputs = [item.predicted for item in teacher_forced(memoir, pairs, batch)]
        scores["locality"][f"{key}_output"] = outputs
        if old is not None:
            scores["locality"][f"{key}_acc"] = [
                agreement(one, other) for one, other in zip(outputs, old[f"{key}_output"], strict=True)
            ]
            scores["metric_meta"][f"locality.{key}"] = _compared(key)
    return scores


def _forced(name: str) -> dict[str, str]:
    """How EasyEdit says that a share was measured by teacher forcing."""
    protocol, scorer = "decoder_only_teacher_forcing", "token_accuracy"
    return _meta(f"{name}_acc", protocol, scorer, f"lm.{protocol}.{scorer}")


def _compared(key: str) -> dict[str, str]:
    """How it says that outputs were compared with those before the edit."""
    protocol = "pre_post_argmax_token_match"
    return _meta(f"locality.{key}_acc", protocol, "token_match", f"locality.lm.{protocol}")


def _meta(result_key: str, protocol: str, scorer: str, group: str) -> dict[str, str]:
    return {"result_key": result_key, "protocol": protocol, "scorer": scorer, "comparable_group": group}


def _accuracy(memoir: Memoir, pairs: Sequence[Pair], batch: int) -> list[float]:
    return [item.accuracy for item in teacher_forced(memoir, pairs, batch)]


def _attach(model: Any, tok: Any, hparams: Any) -> Memoir:
    config = hparams.config if isinstance(hparams, MemoirHyperParams) else _as_hparams(hparams).config
    memoir = Memoir.attach(model, tok, config)
    setattr(model, _ATTRIBUTE, memoir)
    return memoir


def _as_hparams(values: Any) -> MemoirHyperParams:
    known = {field.name for field in fields(MemoirHyperParams)}
    return MemoirHyperParams(**{name: value for name, value in vars(values).items() if name in known})


def _edit(request: Mapping[str, Any]) -> Edit:
    for name in ("prompt", "target_new"):
        if name not in request:
            raise ValueError(f"a request needs {name!r}, got {sorted(request)}")
    prompt = request["prompt"]
    if "{}" in prompt and request.get("subject"):
        prompt = prompt.replace("{}", request["subject"])
    return Edit(prompt, request["target_new"], subject=subject_in(request.get("subject"), prompt))


def _pairs(probes: Mapping[str, Any] | None) -> dict[str, list[Pair]]:
    """{key: {prompt, ground_truth}} as pairs per key; a key without prompts is left out."""
    found = {}
    for key, probe in (probes or {}).items():
        prompts, answers = _listed(probe["prompt"]), _listed(probe["ground_truth"])
        if len(prompts) != len(answers):
            raise ValueError(f"{key!r} has {len(prompts)} prompts and {len(answers)} answers")
        if prompts:
            found[key] = list(zip(prompts, answers, strict=True))
    return found


def _listed(value: Any) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def _number(value: Any) -> Any:
    """A number written so that YAML takes it for text, such as 1e-3."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _yaml(text: str) -> Any:
    import yaml

    return yaml.safe_load(text)
