"""Which fields of a request transformers' server goes by, and which it passes over: those are refused, not ignored."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

CHAT, TEXT, RESPONSES = "chat", "text", "responses"
"""The three APIs: chat completions, completions of a text, responses."""

_SERVED = {
    "": {"generation_config", "model", "seed", "stream", "temperature", "top_p"},
    CHAT: {"chat_template_kwargs", "frequency_penalty", "logit_bias", "max_completion_tokens", "max_tokens", "messages"}
    | {"stop", "tools"},
    TEXT: {"frequency_penalty", "max_tokens", "prompt", "stop", "suffix"},
    RESPONSES: {"input", "instructions", "max_output_tokens", "tools"},
}
# They ask for no other answer: bookkeeping of the caller's, and hints at speed and length.
_HINTS = {
    "metadata", "prediction", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "reasoning",
    "reasoning_effort", "safety_identifier", "service_tier", "store", "stream_options", "user", "verbosity",
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
    "text": ({}, {"format": {"type": "text"}}),
    "tool_choice": ("auto",),
    "top_logprobs": (0,),
    "truncation": ("auto", "disabled"),  # a prompt that is too long is refused in any case
}
_TEXTS = ("text", "input_text", "output_text")


def require_served(api: str, body: Mapping[str, Any]) -> None:
    """ValueError where a request asks for what its answer would lack.

    Args:
        api (str): `CHAT`, `TEXT` or `RESPONSES`.
        body (mapping): the request's JSON object. What a field that is served holds is not looked at.

    Example:
        >>> from memoir_fast.hf.request_fields import CHAT, require_served
        >>> require_served(CHAT, {"messages": [], "n": 1, "user": "jo"})
        >>> require_served(CHAT, {"messages": [], "n": 2})
        Traceback (most recent call last):
        ValueError: n is not served here, but as 1, got 2: leave it out
    """
    served = _SERVED[""] | _SERVED[api] | _HINTS
    for name, value in body.items():
        if name in served or value is None or name == "tool_choice" and value == "none" and not body.get("tools"):
            continue
        anyway = _ANYWAY.get(name, ())
        if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in anyway):
            known = f", but as {' or '.join(map(json.dumps, anyway))}" if anyway else ""
            raise ValueError(f"{name} is not served here{known}, got {json.dumps(value):.100}: leave it out")


def require_texts(messages: Iterable[Any]) -> None:
    """ValueError where a message holds something else than text, such as an image: it would be left out.

    Example:
        >>> from memoir_fast.hf.request_fields import require_texts
        >>> require_texts([{"role": "user", "content": [{"type": "text", "text": "Who?"}]}])
        >>> require_texts([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "..."}}]}])
        Traceback (most recent call last):
        ValueError: the parts of a message must be text here, got one of the type 'image_url'
    """
    for message in messages:
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            if part["type"] not in _TEXTS:
                raise ValueError(f"the parts of a message must be text here, got one of the type {part['type']!r:.100}")
