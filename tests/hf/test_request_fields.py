"""Which fields of requests are served, passed over without harm, or refused."""

import pytest

from memoir_fast.hf.request_fields import CHAT, RESPONSES, TEXT, served_fields


@pytest.mark.parametrize("api", [CHAT, TEXT, RESPONSES])
def test_a_field_that_nobody_knows_is_refused(api):
    with pytest.raises(ValueError, match="future is not served here, got 3: leave it out"):
        served_fields(api, {"model": "tiny", "future": 3})
    assert served_fields(api, {"model": "tiny", "future": None, "user": "jo"}) == {"model": "tiny"}


def test_one_api_has_not_anothers_fields():
    assert served_fields(TEXT, {"prompt": "a"}) == {"prompt": "a"}
    with pytest.raises(ValueError, match="prompt is not served here"):
        served_fields(RESPONSES, {"input": "a", "prompt": {"id": "p"}})
    with pytest.raises(ValueError, match="logit_bias is not served here, but as {}"):
        served_fields(TEXT, {"prompt": "a", "logit_bias": {"1": 2}})
    assert served_fields(CHAT, {"logit_bias": {"1": 2}}) == {"logit_bias": {"1": 2}}


@pytest.mark.parametrize("value", [True, 1.5, 2, "1", [1], -1])
def test_numbers_and_booleans_are_told_apart(value):
    with pytest.raises(ValueError, match="n is not served"):
        served_fields(CHAT, {"n": value})
    assert served_fields(CHAT, {"n": 1, "presence_penalty": 0.0, "logprobs": False}) == {}


@pytest.mark.parametrize(("name", "value"), [("tool_choice", "none"), ("parallel_tool_calls", False)])
def test_calls_of_tools_may_be_forbidden_where_there_is_none(name, value):
    for without in ({}, {"tools": []}, {"tools": None}):
        assert name not in served_fields(CHAT, {name: value, **without})
    with pytest.raises(ValueError, match=name):
        served_fields(CHAT, {name: value, "tools": [{}]})


@pytest.mark.parametrize("value", [{}, {"verbosity": "low"}, {"format": {"type": "text"}, "verbosity": "high"}, None])
def test_how_many_words_an_answer_has_is_a_hint(value):
    assert served_fields(RESPONSES, {"text": value}) == {}


@pytest.mark.parametrize("value", ["a", {"format": {"type": "json_schema"}}, {"verbosity": "low", "future": 1}])
def test_another_form_of_text_is_refused(value):
    with pytest.raises(ValueError, match="text is not served here, but as {} or"):
        served_fields(RESPONSES, {"text": value})
