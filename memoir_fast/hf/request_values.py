"""What a request's fields must hold, and the request as transformers' handlers take it."""

import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from memoir_fast.hf.request_fields import CHAT, RESPONSES, TEXT, served_fields
from memoir_fast.hf.request_messages import require_input, require_messages

STOPS, STOP = 16, 256
"""How many stop strings a request may have, and of how many characters: each is compared with the whole vocabulary."""
BEAMS = 16
"""How many beams at most: each has keys and values of its own."""
# Of transformers' settings, those that say which tokens an answer has. Others ask for several answers, another model, a
# cache of another kind, code from a hub, compilation, or more than the text.
_SETTINGS = {
    "bad_words_ids", "begin_suppress_tokens", "bos_token_id", "do_sample", "early_stopping", "eos_token_id",
    "epsilon_cutoff", "eta_cutoff", "exponential_decay_length_penalty", "forced_bos_token_id", "forced_eos_token_id",
    "length_penalty", "max_new_tokens", "max_time", "min_length", "min_new_tokens", "min_p", "no_repeat_ngram_size",
    "num_beams", "pad_token_id", "remove_invalid_values", "renormalize_logits", "repetition_penalty", "sequence_bias",
    "stop_strings", "suppress_tokens", "temperature", "top_h", "top_k", "top_p", "typical_p",
}  # fmt: skip
_LARGEST = 1e300  # JSON's whole numbers may be too large for a float
_COLDEST = 1e-5  # a lower temperature is taken as 0: logits over it may be too large for a float
_WHAT = {CHAT: "messages", TEXT: "prompt", RESPONSES: "input"}
# Arguments of the call that applies a template, which a request cannot set, beside the template's own variables.
_NO_VARIABLES = set(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters) - {"documents"}


def as_served(api: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that a request is answered by, as transformers takes them.

    A list of one prompt is the prompt, and nothing is streamed that is not asked to be.

    Args:
        api (str): `CHAT`, `TEXT` or `RESPONSES`.
        body (mapping): the request's JSON object.

    Raises:
        ValueError: it asks for what its answer would lack, or a field holds what it cannot; the message says what was
            expected, and what came.

    Example:
        >>> from memoir_fast.hf.request_values import TEXT, as_served
        >>> as_served(TEXT, {"prompt": ["The"], "max_tokens": 3, "user": None})
        {'prompt': 'The', 'max_tokens': 3, 'stream': False}
        >>> as_served(TEXT, {"prompt": "The", "max_tokens": "3"})
        Traceback (most recent call last):
        ValueError: max_tokens must be a whole number from 1, got "3"
    """
    _require_characters(body)
    given = served_fields(api, body)
    for name, value in given.items():
        expected, holds = _FIELDS.get(name, ("", _anything))
        if not holds(value):
            raise ValueError(f"{name} must be {expected}, got {json.dumps(value):.100}")
    if _WHAT[api] not in given:
        raise ValueError(f"the request must have the field {_WHAT[api]}")
    if api == CHAT:
        require_messages(given["messages"])
    elif api == RESPONSES:
        require_input(given["input"], "instructions" in given)
    elif isinstance(given["prompt"], list):
        given["prompt"] = given["prompt"][0]
    for name in ("logit_bias", "stop"):
        if name in given and not given[name]:
            del given[name]
    if "logit_bias" in given:
        given["logit_bias"] = {token: float(bias) for token, bias in given["logit_bias"].items()}
    if given.get("temperature", 1) < _COLDEST:
        given["temperature"] = 0
    return {**given, "stream": given.get("stream", False)}


def _require_characters(body: Mapping[str, Any]) -> None:
    """ValueError where a text holds half of a character, which no tokenizer takes."""
    try:
        json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise ValueError(f"a request's texts must be whole characters, got half of one, {half}") from None


def _anything(_: Any) -> bool:
    return True


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -_LARGEST < value < _LARGEST


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return _is_whole(value) and value >= 1


def _is_stop(value: Any) -> bool:
    texts = value if isinstance(value, list) else [value]
    return len(texts) <= STOPS and all(_is_text(one) and 1 <= len(one) <= STOP for one in texts)


def _is_bias(value: Any) -> bool:
    return isinstance(value, dict) and all(
        token.isascii() and token.isdecimal() and len(token) <= 9 and _is_number(bias) for token, bias in value.items()
    )


def _is_prompt(value: Any) -> bool:
    return _is_text(value) or isinstance(value, list) and len(value) == 1 and _is_text(value[0])


def _are_tools(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_tool, value))


def _is_tool(value: Any) -> bool:
    if not isinstance(value, dict) or value.get("type") != "function":
        return False
    function = value.get("function", value)
    return isinstance(function, dict) and _is_text(function.get("name"))


def _are_variables(value: Any) -> bool:
    return isinstance(value, dict) and not _NO_VARIABLES.intersection(value)


def _is_config(value: Any) -> bool:
    """Whether it is settings of `_SETTINGS` in JSON; what most of them hold is looked at by transformers."""
    try:
        config = json.loads(value)
    except (TypeError, ValueError, RecursionError):
        return False
    if not isinstance(config, dict) or not _SETTINGS.issuperset(config):
        return False
    beams, stop = config.get("num_beams"), config.get("stop_strings")
    return (beams is None or _is_count(beams) and beams <= BEAMS) and (stop is None or _is_stop(stop))


_COUNT = ("a whole number from 1", _is_count)
# By field: what it must be, and whether a value is that.
_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "chat_template_kwargs": (
        f"an object of the template's variables, without {', '.join(sorted(_NO_VARIABLES))}",
        _are_variables,
    ),
    "frequency_penalty": ("a number above -1, at most 2", lambda value: _is_number(value) and -1 < value <= 2),
    "generation_config": (
        f"a JSON object in a string, of these of transformers' settings: {', '.join(sorted(_SETTINGS))}; "
        f"at most {BEAMS} beams, and stop strings as in stop",
        _is_config,
    ),
    "instructions": ("a string", _is_text),
    "logit_bias": ('an object of numbers by token id, such as {"42": -100}', _is_bias),
    "max_completion_tokens": _COUNT,
    "max_output_tokens": _COUNT,
    "max_tokens": _COUNT,
    "model": ("a string", _is_text),
    "prompt": ("a string, or a list of one: there is one answer to a request", _is_prompt),
    "seed": ("a whole number of 64 bits", lambda value: _is_whole(value) and -(1 << 63) <= value < 1 << 63),
    "stop": (f"a string of 1 to {STOP} characters, or a list of {STOPS} such at most", _is_stop),
    "stream": ("true or false", lambda value: isinstance(value, bool)),
    "temperature": ("a number from 0", lambda value: _is_number(value) and value >= 0),
    "tools": ('a list of functions, {"type": "function", ...}, each with a name', _are_tools),
    "top_p": ("a number in 0 ... 1", lambda value: _is_number(value) and 0 <= value <= 1),
}
