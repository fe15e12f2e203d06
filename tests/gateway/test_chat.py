"""`POST /v1/chat/completions`, driven by the official client."""

from __future__ import annotations

import json

import openai
import pytest

from inferloom.types import (
    FunctionCall,
    TokenChunk,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    TopLogprob,
    Usage,
)

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "Paris is the capital of France."
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def chat(gateway, **fields):
    return gateway.openai.chat.completions.create(**{"model": "talker", "messages": QUESTION} | fields)


async def post(gateway, **fields):
    return await gateway.http.post("/v1/chat/completions", json={"messages": QUESTION} | fields)


def events(text: str) -> list[dict]:
    """The JSON of every frame; the last frame must be `[DONE]`."""
    frames = [line.removeprefix("data: ") for line in text.split("\n\n") if line.startswith("data: ")]
    assert frames[-1] == "[DONE]"
    return [json.loads(frame) for frame in frames[:-1]]


# --- whole answers --------------------------------------------------------------------------------------------------


async def test_a_chat_is_answered(gateway):
    answer = await chat(gateway)
    choice = answer.choices[0]
    assert choice.message.content == ANSWER
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "stop"
    assert answer.object == "chat.completion"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (
        5,
        7,
        12,
    )
    assert answer.usage.prompt_tokens_details.cached_tokens == 2


async def test_ids_are_unique(gateway):
    ids = {(await chat(gateway)).id for _ in range(20)}
    assert len(ids) == 20
    assert all(id.startswith("chatcmpl-") for id in ids)


async def test_n_choices_are_answered_in_their_order(gateway):
    answer = await chat(gateway, n=3, max_tokens=2)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert {choice.message.content for choice in answer.choices} == {"Paris is"}
    assert {choice.finish_reason for choice in answer.choices} == {"length"}


@pytest.mark.parametrize(
    "name, echoed", [("talker", "talker"), ("chatty", "chatty"), ("default", "talker"), ("", "talker")]
)
async def test_the_model_is_echoed_as_it_was_named(gateway, name, echoed):
    assert (await chat(gateway, model=name)).model == echoed


async def test_without_a_name_the_default_model_answers_and_is_named(gateway):
    assert (await post(gateway)).json()["model"] == "talker"


async def test_the_canonical_name_of_the_source_is_accepted(gateway):
    assert (await chat(gateway, model="house/talker")).model == "house/talker"


async def test_every_parameter_reaches_the_runner(gateway):
    await chat(
        gateway,
        temperature=0.5,
        top_p=0.9,
        presence_penalty=1,
        frequency_penalty=-1,
        logit_bias={"7": -100},
        seed=42,
        stop=["\n", "END"],
        max_completion_tokens=5,
        logprobs=True,
        top_logprobs=3,
        user="somebody",
        extra_body={
            "top_k": 40,
            "min_p": 0.05,
            "repetition_penalty": 1.1,
            "ignore_eos": True,
            "stop_token_ids": [3],
            "chat_template_kwargs": {"enable_thinking": False},
        },
    )
    batch = gateway.talker.batches[0]
    s = batch.sampling
    assert (s.temperature, s.top_p, s.top_k, s.min_p, s.seed) == (0.5, 0.9, 40, 0.05, 42)
    assert (s.presence_penalty, s.frequency_penalty, s.repetition_penalty) == (1, -1, 1.1)
    assert s.logit_bias == {7: -100}
    assert (batch.stop, batch.stop_token_ids) == (("\n", "END"), (3,))
    assert (batch.max_tokens, batch.logprobs, batch.ignore_eos) == (5, 3, True)
    assert batch.chat_template_kwargs == {"enable_thinking": False}
    assert batch.user == "somebody"


async def test_what_a_request_leaves_out_is_left_to_the_model(gateway):
    await chat(gateway)
    batch = gateway.talker.batches[0]
    assert batch.sampling.temperature is None
    assert batch.max_tokens is None
    assert batch.logprobs is None


async def test_stop_takes_token_ids_beside_strings(gateway):
    assert (await post(gateway, stop=["a", 5, "b", 6])).status_code == 200
    batch = gateway.talker.batches[0]
    assert (batch.stop, batch.stop_token_ids) == (("a", "b"), (5, 6))


async def test_text_parts_are_joined(gateway):
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "this?"}]
    await chat(gateway, messages=[{"role": "user", "content": parts}])
    assert gateway.talker.batches[0].messages[0].content == "What is this?"


async def test_messages_may_be_a_plain_string(gateway):
    assert (await post(gateway, messages="hello")).status_code == 200
    assert gateway.talker.batches[0].messages[0].content == "hello"


async def test_tool_messages_and_calls_of_the_assistant_reach_the_runner(gateway):
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    await chat(
        gateway,
        messages=[
            *QUESTION,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
        ],
    )
    _, assistant, tool = gateway.talker.batches[0].messages
    assert assistant.tool_calls == (ToolCall(id="call_1", function=FunctionCall("weather", "{}")),)
    assert (tool.tool_call_id, tool.content) == ("call_1", "sunny")


async def test_response_formats_become_constraints(gateway):
    schema = {"type": "object", "properties": {"b": {}, "a": {}}}
    await chat(gateway, response_format={"type": "json_object"})
    await chat(
        gateway, response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    )
    await chat(gateway, response_format={"type": "text"})
    first, second, third = (batch.constraint for batch in gateway.talker.batches)
    assert first.kind == "json_object"
    assert (second.kind, second.value) == ("json_schema", '{"type":"object","properties":{"b":{},"a":{}}}')
    assert third is None


@pytest.mark.parametrize(
    "choice, mode, name",
    [
        ("auto", "auto", None),
        ("none", "none", None),
        ("required", "required", None),
        ({"type": "function", "function": {"name": "weather"}}, "function", "weather"),
        ({"type": "function", "name": "weather"}, "function", "weather"),
    ],
)
async def test_tool_choices(gateway, choice, mode, name):
    assert (await post(gateway, tools=[WEATHER], tool_choice=choice)).status_code == 200
    batch = gateway.talker.batches[0]
    assert [tool.name for tool in batch.tools] == ["weather"]
    assert (batch.tool_choice.mode, batch.tool_choice.name) == (mode, name)


@pytest.mark.parametrize("fields, several", [({}, True), ({"parallel_tool_calls": False}, False)])
async def test_the_number_of_calls_can_be_limited_to_one(gateway, fields, several):
    assert (await post(gateway, tools=[WEATHER], **fields)).status_code == 200
    assert gateway.talker.batches[0].parallel_tool_calls is several


async def test_allowed_tools_narrow_the_tools(gateway):
    other = {"type": "function", "function": {"name": "time", "description": "now", "strict": True}}
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "time"}}]}
    choice = {"type": "allowed_tools", "allowed_tools": allowed}
    assert (await post(gateway, tools=[WEATHER, other], tool_choice=choice)).status_code == 200
    batch = gateway.talker.batches[0]
    assert [(t.name, t.description, t.strict) for t in batch.tools] == [("time", "now", True)]
    assert batch.tool_choice.mode == "required"


def tool_call_chunks(batch):
    return [
        TokenChunk(reasoning="hm"),
        TokenChunk(tool_calls=(ToolCallDelta(index=0, id="call_a", name="weather"),)),
        TokenChunk(tool_calls=(ToolCallDelta(index=0, arguments='{"city"'),)),
        TokenChunk(tool_calls=(ToolCallDelta(index=0, arguments=':"Paris"}'),)),
        TokenChunk(tool_calls=(ToolCallDelta(index=1, id="call_b", name="time"),)),
        TokenChunk(finish_reason="tool_calls", usage=Usage(prompt_tokens=1, completion_tokens=4)),
    ]


async def test_tool_calls_are_put_together(gateway):
    gateway.talker.script = tool_call_chunks
    message = (await chat(gateway, tools=[WEATHER])).choices[0].message
    assert message.content is None
    assert message.reasoning_content == "hm"
    calls = [(call.id, call.type, call.function.name, call.function.arguments) for call in message.tool_calls]
    assert calls == [
        ("call_a", "function", "weather", '{"city":"Paris"}'),
        ("call_b", "function", "time", ""),
    ]


async def test_tool_call_deltas_bring_id_and_name_first_then_arguments(gateway):
    gateway.talker.script = tool_call_chunks
    stream = await chat(gateway, tools=[WEATHER], stream=True)
    deltas = [call async for chunk in stream for call in chunk.choices[0].delta.tool_calls or ()]
    assert [(d.index, d.id, d.function.name, d.function.arguments) for d in deltas] == [
        (0, "call_a", "weather", ""),
        (0, None, None, '{"city"'),
        (0, None, None, ':"Paris"}'),
        (1, "call_b", "time", ""),
    ]


def logprob_chunks(batch):
    token = TokenLogprob(7, "é", -0.5, "é".encode(), (TopLogprob(7, "é", -0.5, "é".encode()),))
    never = TokenLogprob(8, "x", float("-inf"), b"x")
    return [
        TokenChunk(text="é", logprobs=(token,)),
        TokenChunk(text="x", logprobs=(never,)),
        TokenChunk(finish_reason="stop", usage=Usage(prompt_tokens=1, completion_tokens=2)),
    ]


async def test_logprobs_have_openais_shape(gateway):
    gateway.talker.script = logprob_chunks
    content = (await chat(gateway, logprobs=True, top_logprobs=1)).choices[0].logprobs.content
    assert (content[0].token, content[0].logprob, content[0].bytes) == ("é", -0.5, [0xC3, 0xA9])
    assert content[0].top_logprobs[0].model_dump() == {"token": "é", "logprob": -0.5, "bytes": [0xC3, 0xA9]}
    assert content[1].logprob == -9999.0


async def test_streamed_logprobs_come_with_their_text(gateway):
    gateway.talker.script = logprob_chunks
    stream = await chat(gateway, logprobs=True, top_logprobs=1, stream=True)
    choices = [chunk.choices[0] async for chunk in stream]
    found = [(c.delta.content, c.logprobs.content[0].token) for c in choices if c.logprobs]
    assert found == [("é", "é"), ("x", "x")]


# --- streams --------------------------------------------------------------------------------------------------------


async def test_a_stream_brings_the_role_then_one_frame_per_token_then_the_finish(gateway):
    response = await post(gateway, stream=True)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    choices = [event["choices"][0] for event in events(response.text)]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert [choice["delta"]["content"] for choice in choices[1:-1]] == [
        "Paris",
        " is",
        " the",
        " capital",
        " of",
        " France",
        ".",
    ]
    assert (choices[-1]["delta"], choices[-1]["finish_reason"]) == ({}, "stop")
    assert [choice["finish_reason"] for choice in choices[:-1]] == [None] * 8


async def test_frames_of_a_stream_share_id_model_and_time(gateway):
    found = events((await post(gateway, stream=True, model="chatty")).text)
    assert len({(e["id"], e["model"], e["created"], e["object"]) for e in found}) == 1
    assert (found[0]["model"], found[0]["object"]) == ("chatty", "chat.completion.chunk")
    assert "usage" not in found[0]


async def test_every_choice_of_a_stream_has_its_own_role_and_finish(gateway):
    found = events((await post(gateway, stream=True, n=3)).text)
    choices = [event["choices"][0] for event in found]
    assert [c["index"] for c in choices if c["delta"].get("role")] == [0, 1, 2]
    assert sorted(c["index"] for c in choices if c["finish_reason"]) == [0, 1, 2]
    texts = ["".join(c["delta"].get("content", "") for c in choices if c["index"] == i) for i in range(3)]
    assert texts == [ANSWER] * 3


async def test_usage_is_the_last_chunk_with_no_choices_where_it_is_asked_for(gateway):
    stream = await chat(gateway, stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 7
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens == 2
    assert all(chunk.usage is None for chunk in chunks[:-1])


async def test_text_that_needs_escaping_survives_a_stream(gateway):
    text = 'a"\\\n\r\t\x00\u2028é漢😀'
    gateway.talker.script = lambda batch: [TokenChunk(text=text), TokenChunk(finish_reason="stop")]
    stream = await chat(gateway, stream=True)
    assert "".join([c.choices[0].delta.content or "" async for c in stream]) == text


async def test_reasoning_is_streamed_beside_the_content(gateway):
    gateway.talker.script = lambda batch: [
        TokenChunk(reasoning="think"),
        TokenChunk(text="so"),
        TokenChunk(finish_reason="stop"),
    ]
    deltas = [event["choices"][0]["delta"] for event in events((await post(gateway, stream=True)).text)]
    assert deltas[1:3] == [{"reasoning_content": "think"}, {"content": "so"}]


# --- errors as the official client sees them ------------------------------------------------------------------------


async def test_an_unknown_model_is_not_found(gateway):
    with pytest.raises(openai.NotFoundError, match="model not found") as caught:
        await chat(gateway, model="nobody")
    assert caught.value.code == "model_not_found"


async def test_a_bad_request_is_a_bad_request_error(gateway):
    with pytest.raises(openai.BadRequestError) as caught:
        await chat(gateway, temperature=5)
    assert caught.value.param == "temperature"


async def test_a_chat_to_an_embedding_model_says_which_models_can(gateway):
    with pytest.raises(openai.BadRequestError, match="talker can") as caught:
        await chat(gateway, model="vectors")
    assert caught.value.param == "model"


async def test_a_model_whose_kind_is_learnt_by_loading_it_is_refused_too(gateway):
    gateway.catalog.entries()[1].status.card = None
    with pytest.raises(openai.BadRequestError, match="makes embeddings"):
        await chat(gateway, model="vectors")
    assert gateway.catalog.leases == 0


async def test_an_unloaded_model_is_not_loaded_only_to_be_refused(gateway):
    entry = gateway.catalog.entries()[1]
    entry.runner = None
    with pytest.raises(openai.BadRequestError, match="talker can"):
        await chat(gateway, model="vectors")
    assert gateway.catalog.deadlines == []
