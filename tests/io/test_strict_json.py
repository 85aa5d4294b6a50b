"""What is plain comes back, what is not is refused by name, on either way."""

import json
import math
import tracemalloc

import pytest

from memoir_fast.io import strict_json

PLAIN = {
    "texts": ["", "\x00\x1b[2J\u2028 日本 🗼", 'say "yes"\n'],
    "numbers": [0, -1, 2**63 - 1, -(2**63), 0.1, -1e300, True, False, None],
    "nested": {"a": [[], {}, [{"b": []}]]},
}


@pytest.mark.parametrize("value", [PLAIN, [], {}, None, 1.5, "text", True])
def test_plain_values_come_back(value):
    assert strict_json.loads(strict_json.dumps(value)) == value


def test_as_few_bytes_as_it_takes():
    assert strict_json.dumps({"a": ["ü", 1]}) == '{"a":["ü",1]}'.encode()


NOT_PLAIN = {
    "nan": ("NaN", float("nan"), "must be finite"),
    "infinite": ("-Infinity", -math.inf, "must be finite"),
    "too large a float": ("1e999", math.inf, "must be finite"),
    "a bit too large": (str(2**63), 2**63, "does not fit in 64 bits"),
    "far too large": ("1" * 5000, 10**4000, "has 5000 digits, expected one of 64 bits|does not fit in 64 bits"),
    "half a character": (r'"\ud800"', "\ud800", "half a character"),
    "control character in a name": (r'{"a\u001b": 1}', {"a\x1b": 1}, r"printable text, got 'a\\x1b'"),
    "no name": ('{"": 1}', {"": 1}, "printable text"),
    "deep": ("[" * 40 + "]" * 40, None, "more than 32 deep"),
    "deeper than the parser": ("[" * 100_000, None, "more than 32 deep"),
}


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_what_is_not_plain_is_not_read(name):
    text, _, reason = NOT_PLAIN[name]
    with pytest.raises(ValueError, match=reason):
        strict_json.loads(text.encode())


@pytest.mark.parametrize("name", [name for name, (_, value, _) in NOT_PLAIN.items() if value is not None])
def test_what_is_not_plain_is_not_written(name):
    _, value, reason = NOT_PLAIN[name]
    with pytest.raises(ValueError, match=reason):
        strict_json.dumps([value])


def test_values_that_json_would_turn_into_others():
    for value in ({1: "one"}, {"a": {2}}, object()):
        with pytest.raises(ValueError, match="got"):
            strict_json.dumps(value)
    deep = []
    for _ in range(40):
        deep = [deep]
    with pytest.raises(ValueError, match="more than 32 deep"):
        strict_json.dumps(deep)


def test_a_name_that_is_there_twice():
    with pytest.raises(ValueError, match="an object has the name 'a' twice"):
        strict_json.loads(b'[{"b": 1, "a": 1, "a": 1}]')


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b'"\xed\xa0\x80"', b'"\x01"', b"[1] 2", b"{'a': 1}"])
def test_no_json(text):
    with pytest.raises(ValueError):
        strict_json.loads(text)


def test_long_texts_are_refused_before_they_are_parsed(monkeypatch):
    monkeypatch.setattr(strict_json, "LONGEST", 1000)
    tracemalloc.start()
    with pytest.raises(ValueError, match="at most 1,000 bytes of JSON, got 3,000"):
        strict_json.loads(b"[[]" * 1000)
    assert tracemalloc.get_traced_memory()[1] < 5000
    tracemalloc.stop()
    with pytest.raises(ValueError, match="at most 1,000 bytes of JSON, got 1,002"):
        strict_json.dumps("a" * 1000)
    assert json.loads(strict_json.dumps("a" * 998)) == "a" * 998
