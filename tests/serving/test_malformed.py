"""Malformed requests, over every endpoint: each is answered with 400, in OpenAI's form, which says what is wrong."""

import json

import pytest

for _package in ("fastapi", "uvicorn", "openai", "prometheus_client"):
    pytest.importorskip(_package, reason="needs the extra serve")

from memoir_fast.hf.request_errors import LONGEST, error_body, refused  # noqa: E402
from memoir_fast.hf.request_messages import require_input, require_messages  # noqa: E402

CHAT, TEXT, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
ASKED = {
    CHAT: {"messages": [{"role": "user", "content": "Who?"}], "max_tokens": 1},
    TEXT: {"prompt": "Who?", "max_tokens": 1},
    RESPONSES: {"input": "Who?", "max_output_tokens": 1},
}
PART = 'must be {"type": "text", "text": "..."}, got '
HALF = "must be whole characters, got half of one, \\ud800"
# (a message's content, what is said of it behind its place)
CONTENTS = [
    (None, " must be a string or a list of"),
    (3, " must be a string or a list of"),
    ({"type": "text", "text": "a"}, " must be a string or a list of"),
    (["a"], f'[0] {PART}"a"'),
    ([None], f"[0] {PART}null"),
    ([{}], f"[0] {PART}{{}}"),
    ([{"text": "a"}], f"[0] {PART}"),
    ([{"type": "text"}], f"[0] {PART}"),
    ([{"type": ["text"], "text": "a"}], f"[0] {PART}"),
    ([{"type": "text", "text": "a"}, {"type": "text", "text": None}], f"[1] {PART}"),
    ([{"type": "image_url", "image_url": {"url": "a"}}], f"[0] {PART}"),
]
# (messages, what is said of them)
MESSAGES = [
    ([], " must be a list of messages"),
    ({}, " must be a list of messages"),
    (3, " must be a list of messages"),
    (["a"], '[0] must be a message {"role": "user", "content": "..."}, got "a"'),
    ([None], "[0] must be a message"),
    ([[]], "[0] must be a message"),
    ([{"role": 3, "content": "a"}], '[0].role must be a string, such as "user", got 3'),
    ([{"role": "", "content": "a"}], "[0].role must be a string"),
    ([{"role": "user", "content": "a"}, {"role": "user"}], "[1].content must be a string or a list of"),
    ([{"role": "user", "content": "\ud800"}], HALF),
    *(([{"role": "user", "content": content}], f"[0].content{said}") for content, said in CONTENTS),
]
CALL = {"name": "f", "arguments": "{}"}
# (tool_calls of a message, what is said of them)
CALLS = [
    ("a", "tool_calls must be a list of calls"),
    ([3], "tool_calls[0].function must be"),
    ([{}], "tool_calls[0].function must be"),
    ([{"function": {"arguments": "{}"}}], "tool_calls[0].function.name must be a string, got null"),
    (
        [{"function": {"name": "f"}}],
        'tool_calls[0].function.arguments must be a JSON object in a string, "{...}", got null',
    ),
    ([{"function": {"name": "f", "arguments": "{"}}], "tool_calls[0].function.arguments must be a JSON object"),
    ([{"function": {"name": "f", "arguments": "[]"}}], "tool_calls[0].function.arguments must be a JSON object"),
]
USER = {"role": "user", "content": "a"}
# (items of responses' input, what is said of them)
ITEMS = [
    ([{"type": "text"}], f"input[0] {PART}"),
    ([{"content": "a"}], f"input[0] {PART}"),
    ([USER, {"content": "a"}], "input[1].role must be a string"),
    ([USER, {"type": "item_reference", "id": "a"}], "input[1].type must be message, function_call"),
    ([USER, {"type": "function_call", **CALL}], "input[1].call_id must be a string"),
    ([USER, {"type": "function_call", "call_id": "a", "name": "f"}], "input[1].arguments must be"),
    ([USER, {"type": "function_call_output", "call_id": "a"}], "input[1].output must be a string"),
    ([USER, {"type": "reasoning", "content": [{}]}], "input[1].content must be a list of"),
    ([USER, {"type": "reasoning", "content": 3}], "input[1].content must be a list of"),
]
# (fields, what is said of them), of every endpoint that has them
FIELDS = [
    *(({"temperature": value}, "temperature must be a number from 0") for value in (-1, "1", True, 1e999, 10**400)),
    *(({"top_p": value}, "top_p must be a number in 0 ... 1") for value in (-1, 2, "1", float("nan"))),
    *(({"seed": value}, "seed must be a whole number of 64 bits") for value in ("1", 1.5, True, 1 << 63)),
    *(({"stream": value}, "stream must be true or false") for value in ("yes", 1, [])),
    *(({"model": value}, "model must be a string") for value in (3, ["tiny"])),
    *(({"generation_config": value}, "generation_config must be a JSON object in a string")
      for value in ({}, 3, "{", "[1]", "null", '{"num_return_sequences": 2}', '{"memoir_banks": "acme"}',
                    '{"num_beams": 17}', '{"stop_strings": ""}', '{"cache_implementation": "static"}', "[" * 2000)),
    *(({"generation_config": json.dumps(value)}, "")
      for value in ({"max_new_tokens": "a"}, {"eos_token_id": "a"}, {"max_time": "a"}, {"top_k": -1, "do_sample": 1})),
    ({"model": "another"}, "another"),
    ({"model": "\ud800"}, HALF),
    ({"\ud800": 1}, HALF),
    ({"future": 1}, "future is not served here, got 1"),
    ({"x" * 3000: 1}, "x" * 100 + " is not served here"),
]  # fmt: skip
COUNTS = [(value, "must be a whole number from 1, got ") for value in (0, -1, "3", 1.5, True, [1])]
FURTHER = {
    CHAT: [
        *(({"messages": messages}, ("" if said is HALF else "messages") + said) for messages, said in MESSAGES),
        *(({"messages": [{"role": "assistant", "tool_calls": calls}]}, f"messages[0].{said}") for calls, said in CALLS),
        *(({"max_completion_tokens": value}, said) for value, said in COUNTS),
        *(({"logit_bias": value}, "logit_bias must be an object of numbers by token id")
          for value in ([1], "a", {"a": 1}, {"-1": 1}, {"5": "a"}, {"5": True}, {"\u0665": 1})),
        ({"logit_bias": {"99999999": 1}}, ""),
        *(({"tools": value}, "tools must be a list of functions")
          for value in ("a", {}, [3], [{}], [{"type": "function"}], [{"type": "web_search", "name": "a"}])),
        *(({"chat_template_kwargs": value}, "chat_template_kwargs must be an object of the template's variables")
          for value in ("a", [1], {"chat_template": "a"}, {"truncation": True, "max_length": 3}, {"tokenize": False})),
        ({"messages": None}, "must have the field messages"),
    ],
    TEXT: [
        *(({"prompt": value}, "prompt must be a string, or a list of one")
          for value in (3, [], ["a", "b"], [1, 2], {})),
        ({"prompt": "\ud800"}, HALF),
        ({"prompt": ""}, "the prompt has no tokens"),
        ({"prompt": None}, "must have the field prompt"),
    ],
    RESPONSES: [
        *(({"input": items}, ("" if said is HALF else "input") + said) for items, said in MESSAGES),
        *(({"input": items}, said) for items, said in ITEMS),
        *(({"max_output_tokens": value}, said) for value, said in COUNTS),
        ({"input": [{"role": "system", "content": "a"}, USER], "instructions": "b"}, "instructions beside a system"),
        ({"instructions": 3}, "instructions must be a string"),
        ({"input": None}, "must have the field input"),
    ],
}  # fmt: skip
for _path in (CHAT, TEXT):
    FURTHER[_path] += [
        *(({"max_tokens": value}, said) for value, said in COUNTS),
        *(({"stop": value}, "stop must be a string of 1 to 256 characters")
          for value in ("", [""], 3, [3], {"a": 1}, ["a"] * 17, "a" * 257)),
        *(({"frequency_penalty": value}, "frequency_penalty must be a number above -1") for value in (-1, 3, "a")),
    ]  # fmt: skip
REQUESTS = [(path, further, said) for path in ASKED for further, said in FIELDS + FURTHER[path]]


def require_refused(answer, said):
    """That a request was refused with 400 in OpenAI's form, saying so."""
    status, told, _ = answer
    assert status == 400 and said in told["error"]["message"], (status, told, said)
    assert told["error"]["type"] == "invalid_request_error" and {"param", "code"} < told["error"].keys()


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("path", ASKED)
def test_what_a_field_cannot_hold_is_said(client, keys, path, stream):
    for _, further, said in (one for one in REQUESTS if one[0] == path):
        body = {**ASKED[path], "stream": stream, **further}
        answer = client("POST", path, key=keys["acme"], raw=json.dumps(body))
        require_refused(answer, said)
        assert "Error:" not in answer[1]["error"]["message"] or not said, answer  # "": transformers says what
    assert client("POST", path, {**ASKED[path], "temperature": 0}, keys["acme"])[0] == 200


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"null",
        b"\xff\xfe",
        b"[" * 3000,
        b'{"messages": ' + b"[" * 1500 + b"]" * 1500 + b"}",
    ],
    ids=lambda raw: raw[:12].decode("latin-1"),
)
def test_a_body_that_is_no_json_object_is_said(client, keys, raw):
    for path in ASKED:
        require_refused(client("POST", path, key=keys["acme"], raw=raw), "")


@pytest.mark.parametrize("path", ASKED)
def test_what_lies_too_deep_is_the_clients_fault(client, keys, path):
    """Wherever Python's limit is met: on reading, looking at or rendering it."""
    for depth in range(600, 1000, 9):
        raw = json.dumps({**ASKED[path], "future": 0}).replace("0}", "[" * depth + "]" * depth + "}")
        require_refused(client("POST", path, key=keys["acme"], raw=raw), "")


def test_what_is_nearly_malformed_is_served(client, keys):
    call = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "id": "a", "function": CALL}]}
    tool = {"role": "tool", "tool_call_id": "a", "content": "b"}
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    named = [{"type": "message", **USER}, {"type": "reasoning"}, {"type": "function_call", "call_id": "a", **CALL}]
    for path, further in (
        (CHAT, {"messages": [USER, call, tool]}),
        (CHAT, {"messages": [{"role": "user", "content": parts}], "logit_bias": {"5": -100}, "stop": []}),
        (CHAT, {"logit_bias": {}, "chat_template_kwargs": None, "tools": []}),
        (CHAT, {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]}),
        (TEXT, {"prompt": ["Who?"], "max_tokens": None}),
        (TEXT, {"generation_config": json.dumps({"num_beams": 2, "eos_token_id": None, "stop_strings": ["a"]})}),
        (RESPONSES, {"input": [*named, {"type": "function_call_output", "call_id": "a", "output": parts}]}),
        (RESPONSES, {"input": parts, "instructions": "Answer.", "tools": [{"type": "function", "name": "f"}]}),
    ):
        status, said, headers = client("POST", path, {**ASKED[path], **further}, keys["acme"])
        assert status == 200 and headers.get_content_type() == "application/json", (further, said)


def test_what_a_chat_template_refuses_is_said(client, keys, memoir, monkeypatch):
    monkeypatch.setattr(memoir.tokenizer, "chat_template", "{{ raise_exception('roles must alternate') }}")
    for path in (CHAT, RESPONSES):
        require_refused(client("POST", path, ASKED[path], keys["acme"]), "roles must alternate")


def test_the_place_of_what_is_wrong_is_named():
    with pytest.raises(ValueError, match=r"^messages\[1\]\.content\[0\] must be"):
        require_messages([USER, {"role": "user", "content": [3]}])
    with pytest.raises(ValueError, match=r"^input\[1\]\.content must be .* got 3$"):
        require_input([USER, {"role": "user", "content": 3}])


def test_an_error_can_be_written_whatever_it_says():
    assert json.dumps(error_body(400, "\ud800 is half"), ensure_ascii=False).encode()
    assert len(error_body(400, "a" * 9999)["error"]["message"]) == LONGEST
    assert error_body(503, "a")["error"]["type"] == "server_error"
    assert refused(RuntimeError("a secret")).status == 500 and "secret" not in str(refused(RuntimeError("a secret")))
