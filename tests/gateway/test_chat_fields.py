"""Fields of a chat request: what is refused, by name, and what is accepted and said to change nothing."""

from __future__ import annotations

import pytest

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
USER = {"role": "user", "content": "x"}


async def post(gateway, **fields):
    return await gateway.http.post("/v1/chat/completions", json={"messages": [USER]} | fields)


@pytest.mark.parametrize(
    "fields, param",
    [
        ({"messages": []}, "messages"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 100000}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logit_bias": {"word": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"seed": 2**70}, "seed"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"tool_choice": "required"}, "tool_choice"),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "no"}}},
            "tool_choice",
        ),
        ({"tools": [WEATHER, WEATHER]}, "tools[1].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [USER, USER | {"audio": {"id": "x"}}]}, "messages[1].audio"),
    ],
)
async def test_a_wrong_field_is_named(gateway, fields, param):
    response = await post(gateway, **fields)
    error = response.json()["error"]
    assert response.status_code == 400
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert gateway.talker.batches == []


@pytest.mark.parametrize(
    "fields, choices",
    [
        ({"response_format": {"type": "xml"}}, '"json_object", "json_schema", "text"'),
        (
            {"messages": [{"role": "king", "content": "x"}]},
            '"assistant", "developer", "system", "tool", "user"',
        ),
        ({"tool_choice": "must"}, '"auto", "none", "required"'),
    ],
)
async def test_where_only_some_words_are_understood_they_are_told(gateway, fields, choices):
    message = (await post(gateway, **fields)).json()["error"]["message"]
    assert message.endswith(f"it must be one of {choices}.")


@pytest.mark.parametrize(
    "fields, param",
    [
        ({"audio": {"voice": "a"}}, "audio"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"prediction": {"type": "content", "content": "x"}}, "prediction"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"functions": []}, "functions"),
        ({"function_call": "auto"}, "function_call"),
        ({"tokenizer_config": {"pad_token": "<pad>"}}, "tokenizer_config"),
        ({"suffix": "the end"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"echo": True}, "echo"),
    ],
)
async def test_what_would_change_the_answer_if_ignored_is_refused(gateway, fields, param):
    response = await post(gateway, **fields)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert response.json()["error"]["code"] == "unsupported"


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file"])
async def test_parts_that_are_not_text_are_refused_with_their_place(gateway, kind):
    content = [{"type": "text", "text": "look"}, {"type": kind, kind: {"url": "http://x/y.png"}}]
    response = await post(gateway, messages=[{"role": "user", "content": content}])
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "messages[0].content[1]"


async def test_fields_that_change_nothing_are_named_in_a_header(gateway):
    response = await post(
        gateway,
        user="u",
        store=True,
        metadata={"a": "b"},
        reasoning_effort="low",
        frobnicate=1,
        stream_options=None,
        messages=[USER | {"cache_control": {}}, USER | {"cache_control": {}}],
        **{"bad\r\nname": 1},
    )
    assert response.status_code == 200
    named = response.headers["x-inferloom-ignored"].split(", ")
    assert set(named) == {
        "user",
        "store",
        "metadata",
        "reasoning_effort",
        "frobnicate",
        "messages[].cache_control",
        "?",
    }


async def test_whole_numbers_may_be_written_as_floats(gateway):
    response = await post(gateway, max_tokens=2.0, stop=["x", 5.0], n=1.0)
    assert response.json()["choices"][0]["message"]["content"] == "Paris is"
    assert gateway.talker.batches[0].stop_token_ids == (5,)
    assert (await post(gateway, max_tokens=2.5)).json()["error"]["param"] == "max_tokens"


async def test_without_ignored_fields_there_is_no_such_header(gateway):
    assert "x-inferloom-ignored" not in (await post(gateway)).headers


async def test_a_wrong_field_beside_an_unknown_one_is_still_named(gateway):
    response = await post(gateway, frobnicate=1, temperature=9)
    assert response.json()["error"]["param"] == "temperature"
