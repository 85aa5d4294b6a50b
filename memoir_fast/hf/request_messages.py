"""What a chat's messages must be: what transformers' handlers would stumble over, or leave out, is refused."""

import json
from typing import Any

_PART = '{"type": "text", "text": "..."}'
_TEXTS = ("text", "input_text", "output_text")


def require_messages(messages: Any) -> None:
    """ValueError, naming the place, where chat completions' `messages` are none, or hold something else than text.

    An image would be left out. A message that calls tools needs no content.

    Example:
        >>> from memoir_fast.hf.request_messages import require_messages
        >>> require_messages([{"role": "user", "content": [{"type": "text", "text": "Who?"}]}])
        >>> require_messages([{"role": "user", "content": [{"type": "image_url"}]}])
        Traceback (most recent call last):
        ValueError: messages[0].content[0] must be {"type": "text", "text": "..."}, got {"type": "image_url"}
    """
    for index, message in enumerate(_listed("messages", messages, 'messages {"role": "user", "content": "..."}')):
        where = f"messages[{index}]"
        _require_role(where, message)
        if message.get("tool_calls"):
            _require_calls(f"{where}.tool_calls", message["tool_calls"])
        else:
            _require_content(f"{where}.content", message.get("content"))


def require_input(given: Any, instructed: bool = False) -> None:
    """ValueError, naming the place, where responses' `input` is no text, list of texts, or list of messages and calls.

    Args:
        given: what the field holds.
        instructed (bool): there are instructions beside it. They would take a first system message's place.

    Example:
        >>> from memoir_fast.hf.request_messages import require_input
        >>> require_input([{"role": "user", "content": "Who?"}])
        >>> require_input([{"role": "user"}])
        Traceback (most recent call last):
        ValueError: input[0].content must be a string or a list of {"type": "text", "text": "..."}, got null
    """
    if isinstance(given, str):
        return
    items = _listed("input", given, 'messages {"role": "user", "content": "..."}, or a string')
    if isinstance(items[0], dict) and "role" not in items[0]:
        _require_content("input", items)
        return
    for index, item in enumerate(items):
        where = f"input[{index}]"
        kind = item.get("type", "message") if isinstance(item, dict) else "message"
        if kind == "message" or isinstance(item, dict) and "role" in item:
            _require_role(where, item)
            _require_content(f"{where}.content", item.get("content"))
        elif kind == "function_call":
            _require_text(f"{where}.call_id", item.get("call_id"))
            _require_function(where, item)
        elif kind == "function_call_output":
            _require_text(f"{where}.call_id", item.get("call_id"))
            _require_content(f"{where}.output", item.get("output"))
        elif kind == "reasoning":
            _require_thoughts(f"{where}.content", item.get("content") or [])
        else:
            raise _unexpected(
                f"{where}.type", "message, function_call, function_call_output or reasoning here", item["type"]
            )
    if instructed and items[0]["role"] == "system":
        raise ValueError("instructions beside a system message at the head of input: give one of the two")


def _require_role(where: str, message: Any) -> None:
    if not isinstance(message, dict):
        raise _unexpected(where, 'a message {"role": "user", "content": "..."}', message)
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise _unexpected(f"{where}.role", 'a string, such as "user"', role)


def _require_content(where: str, content: Any) -> None:
    if isinstance(content, str):
        return
    if not isinstance(content, list):
        raise _unexpected(where, f"a string or a list of {_PART}", content)
    for index, part in enumerate(content):
        is_text = isinstance(part, dict) and part.get("type") in _TEXTS and isinstance(part.get("text"), str)
        if not is_text:
            raise _unexpected(f"{where}[{index}]", _PART, part)


def _require_thoughts(where: str, parts: Any) -> None:
    if not isinstance(parts, list) or not all(
        isinstance(one, dict) and isinstance(one.get("text"), str) for one in parts
    ):
        raise _unexpected(where, 'a list of {"type": "reasoning_text", "text": "..."}', parts)


def _require_calls(where: str, calls: Any) -> None:
    for index, call in enumerate(_listed(where, calls, 'calls {"function": {"name": "...", "arguments": "{...}"}}')):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            raise _unexpected(f"{where}[{index}].function", '{"name": "...", "arguments": "{...}"}', function)
        _require_function(f"{where}[{index}].function", function)


def _require_function(where: str, function: dict[str, Any]) -> None:
    _require_text(f"{where}.name", function.get("name"))
    arguments = function.get("arguments")
    try:
        read = json.loads(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError):
        read = None
    if not isinstance(read, dict):
        raise _unexpected(f"{where}.arguments", 'a JSON object in a string, "{...}"', arguments)


def _require_text(where: str, value: Any) -> None:
    if not isinstance(value, str):
        raise _unexpected(where, "a string", value)


def _listed(where: str, values: Any, expected: str) -> list[Any]:
    if not isinstance(values, list) or not values:
        raise _unexpected(where, f"a list of {expected}", values)
    return values


def _unexpected(where: str, expected: str, value: Any) -> ValueError:
    return ValueError(f"{where} must be {expected}, got {json.dumps(value):.100}")
