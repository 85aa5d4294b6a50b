"""Which fields of a request transformers' server goes by, and which it passes over: those are refused, not ignored."""

import json
from collections.abc import Mapping
from typing import Any

CHAT, TEXT, RESPONSES = "chat", "text", "responses"
"""The three APIs: chat completions, completions of a text, responses."""

_SERVED = {
    "": {"generation_config", "model", "seed", "stream", "temperature", "top_p"},
    CHAT: {"chat_template_kwargs", "frequency_penalty", "logit_bias", "max_completion_tokens", "max_tokens", "messages"}
    | {"stop", "tools"},
    TEXT: {"frequency_penalty", "max_tokens", "prompt", "stop"},
    RESPONSES: {"input", "instructions", "max_output_tokens", "tools"},
}
# They ask for no other answer: bookkeeping of the caller's, hints at speed and length, and what concerns tools that run
# in a server.
_HINTS = {
    "max_tool_calls", "metadata", "prediction", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
    "reasoning", "reasoning_effort", "safety_identifier", "service_tier", "store", "stream_options", "user",
    "verbosity",
}  # fmt: skip
# What a field that is passed over may ask for: that which is done anyway. null asks for nothing.
_ANYWAY: dict[str, tuple[Any, ...]] = {
    "background": (False,),
    "best_of": (1,),
    "echo": (False,),
    "function_call": ("auto", "none"),
    "functions": ([],),
    "include": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "n": (1,),
    "parallel_tool_calls": (True,),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "suffix": ("",),  # the model reads none, and transformers only puts it behind the answer
    "text": ({}, {"format": {"type": "text"}}),
    "tool_choice": ("auto",),
    "top_logprobs": (0,),
    "truncation": ("auto", "disabled"),  # a prompt that is too long is refused in any case
}
# The same where the request has no tools.
_WITHOUT_TOOLS: dict[str, tuple[Any, ...]] = {"parallel_tool_calls": (False,), "tool_choice": ("none",)}


def served_fields(api: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a request that its answer goes by, without those that ask for nothing; null asks for nothing.

    Args:
        api (str): `CHAT`, `TEXT` or `RESPONSES`.
        body (mapping): the request's JSON object. What a field that is served holds is not looked at.

    Raises:
        ValueError: it asks for what its answer would lack.

    Example:
        >>> from memoir_fast.hf.request_fields import CHAT, served_fields
        >>> served_fields(CHAT, {"messages": [], "n": 1, "user": "jo", "seed": None})
        {'messages': []}
        >>> served_fields(CHAT, {"messages": [], "n": 2})
        Traceback (most recent call last):
        ValueError: n is not served here, but as 1, got 2: leave it out
    """
    given = {name: value for name, value in body.items() if value is not None and name not in _HINTS}
    served = {name: value for name, value in given.items() if name in _SERVED[""] | _SERVED[api]}
    for name, value in given.items():
        if name not in served:
            _require_done_anyway(name, value, bool(given.get("tools")))
    return served


def _require_done_anyway(name: str, value: Any, tools: bool) -> None:
    anyway = _ANYWAY.get(name, ()) + (() if tools else _WITHOUT_TOOLS.get(name, ()))
    asked = value
    if name == "text" and isinstance(value, dict):  # of responses: format, and a hint
        asked = {key: held for key, held in value.items() if key != "verbosity" and held is not None}
    if not any(asked == one and isinstance(asked, bool) == isinstance(one, bool) for one in anyway):
        known = f", but as {' or '.join(map(json.dumps, anyway))}" if anyway else ""
        raise ValueError(f"{name:.100} is not served here{known}, got {json.dumps(value):.100}: leave it out")
