"""The official OpenAI client against a real model, feature by feature."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest
from factories.server import Served, serving
from system.clients import connect
from system.processes import wait_until, worker_of

FRANCE: Any = [{"role": "user", "content": "What is the capital of France?"}]
STORY: Any = [{"role": "user", "content": "Tell me a story about the sea."}]


def function(name: str, **properties: object) -> Any:
    parameters = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "parameters": parameters, "strict": True}}


WEATHER = function("weather", city={"enum": ["Paris", "Rome"]}, days={"type": "integer", "enum": [1, 2, 3]})
CLOCK = function("clock", zone={"enum": ["utc", "local"]})
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "large": {"type": "boolean"},
        "rank": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "large", "rank"],
    "additionalProperties": False,
}
JSON_SCHEMA: Any = {
    "type": "json_schema",
    "json_schema": {"name": "city", "schema": SCHEMA, "strict": True},
}


# --- chat and completions -------------------------------------------------------------------------------------------


def test_a_chat_is_answered_with_its_usage(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="smollm2", messages=FRANCE, temperature=0)
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == "The capital of France is Paris."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None and answer.usage.completion_tokens == 7
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 7


def test_a_stream_says_the_same_and_ends_with_its_usage(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="smollm2",
            messages=FRANCE,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert said == "The capital of France is Paris."
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 7


def test_prompts_of_every_shape_are_completed(client: openai.OpenAI, starters: Served) -> None:
    text = "The capital of France is"
    ids = client.post("/../tokenize", body={"model": "exact", "text": text}, cast_to=object)
    tokens: list[int] = ids["tokens"]  # type: ignore[index]

    def complete(prompt: Any, **fields: Any) -> list[str]:
        answer = client.completions.create(
            model="exact", prompt=prompt, temperature=0, max_tokens=6, **fields
        )
        assert [choice.index for choice in answer.choices] == list(range(len(answer.choices)))
        return [choice.text for choice in answer.choices]

    (alone,) = complete(text)
    assert "Paris" in alone
    assert complete([text, "One, two, three,"])[0] == alone
    assert complete(tokens) == [alone]
    assert complete([tokens, tokens]) == [alone, alone]
    assert complete(text, echo=True) == [text + alone]


def test_a_prompt_is_scored_by_echo_and_logprobs(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="exact", prompt="The capital of France is Paris", echo=True, logprobs=1, max_tokens=0
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.tokens is not None and logprobs.token_logprobs is not None
    assert "".join(logprobs.tokens) == "The capital of France is Paris"
    assert logprobs.token_logprobs[0] is None
    assert logprobs.token_logprobs[-1] > -1.0


# --- what steers an answer ------------------------------------------------------------------------------------------


def test_logprobs_are_those_of_the_tokens_said(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="exact", messages=FRANCE, temperature=0, logprobs=True, top_logprobs=3
    )
    content = answer.choices[0].logprobs.content  # type: ignore[union-attr]
    assert content is not None
    assert "".join(entry.token for entry in content).startswith("The capital of France is Paris.")
    for entry in content:
        assert entry.bytes is not None
        assert bytes(entry.bytes).decode() == entry.token
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].token == entry.token  # greedy
        assert entry.top_logprobs[0].logprob == entry.logprob <= 0


def test_a_seed_decides_the_texts_of_all_choices_whatever_else_runs(client: openai.OpenAI) -> None:
    def texts(seed: int) -> list[str | None]:
        answer = client.chat.completions.create(
            model="exact", messages=STORY, temperature=1.2, seed=seed, n=3, max_tokens=12
        )
        return [choice.message.content for choice in answer.choices]

    alone = texts(7)
    assert len(set(alone)) == 3
    with ThreadPoolExecutor(4) as together:
        again, *others = together.map(texts, [7, 8, 9, 10])
    assert again == alone
    assert alone not in others


def test_a_stop_ends_the_answer_and_is_not_shown(client: openai.OpenAI) -> None:
    for stop in (" Paris", [" Pa", "zebra"]):
        answer = client.chat.completions.create(model="exact", messages=FRANCE, temperature=0, stop=stop)
        assert answer.choices[0].message.content == "The capital of France is"
        assert answer.choices[0].finish_reason == "stop"


def test_max_tokens_cuts_the_answer_off(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="exact", messages=FRANCE, temperature=0, max_tokens=3)
    assert answer.choices[0].message.content == "The capital of"
    assert answer.choices[0].finish_reason == "length"


def test_logit_bias_forbids_and_forces(client: openai.OpenAI) -> None:
    ids: Any = client.post("/../tokenize", body={"model": "exact", "text": " Paris"}, cast_to=object)
    (paris,) = ids["tokens"]

    def answer(bias: int) -> str:
        said = client.chat.completions.create(
            model="exact", messages=FRANCE, temperature=0, max_tokens=6, logit_bias={str(paris): bias}
        )
        return said.choices[0].message.content or ""

    assert "Paris" not in answer(-100)
    assert answer(100) == " Paris" * 6


# --- tools and response formats -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "fewest_most"),
    [
        ({"tool_choice": "required"}, (1, 9)),
        ({"tool_choice": "required", "parallel_tool_calls": False}, (1, 1)),
        ({"tool_choice": {"type": "function", "function": {"name": "clock"}}}, (1, 1)),
    ],
)
def test_tools_are_called_with_valid_arguments(
    client: openai.OpenAI, choice: Any, fewest_most: tuple[int, int]
) -> None:
    tools = [WEATHER, CLOCK]
    fields: Any = {
        "model": "smollm2",
        "messages": [{"role": "user", "content": "What is the weather in Rome?"}],
        "tools": tools,
        "temperature": 0,
        "max_tokens": 300,
        **choice,
    }
    whole = client.chat.completions.create(**fields).choices[0]
    assert whole.finish_reason == "tool_calls"
    assert whole.message.tool_calls
    assert fewest_most[0] <= len(whole.message.tool_calls) <= fewest_most[1]
    called = [(call.function.name, call.function.arguments) for call in whole.message.tool_calls]
    streamed: dict[int, list[str]] = {}
    for chunk in client.chat.completions.create(**fields, stream=True):
        for delta in chunk.choices[0].delta.tool_calls or []:
            if delta.id:
                streamed[delta.index] = [delta.function.name, ""]
            streamed[delta.index][1] += delta.function.arguments or ""
    assert [tuple(call) for call in streamed.values()] == called
    for name, arguments in called:
        of = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
        jsonschema.validate(json.loads(arguments), of[name])
    wanted = "weather" if choice["tool_choice"] == "required" else "clock"
    assert called[0][0] == wanted


def test_with_auto_the_model_talks_or_calls(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="smollm2", messages=FRANCE, tools=[WEATHER], tool_choice="auto", temperature=0, max_tokens=60
    ).choices[0]
    if answer.finish_reason == "tool_calls":
        for call in answer.message.tool_calls or []:
            jsonschema.validate(json.loads(call.function.arguments), WEATHER["function"]["parameters"])
    else:
        assert answer.message.content
        assert answer.message.tool_calls is None


def test_a_result_of_a_tool_is_part_of_the_conversation(client: openai.OpenAI) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "clock", "arguments": '{"zone":"utc"}'}}
    messages: Any = [
        {"role": "user", "content": "What time is it?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "It is 12:30."},
    ]
    answer = client.chat.completions.create(
        model="smollm2", messages=messages, tools=[CLOCK], tool_choice="none", temperature=0, max_tokens=30
    )
    assert answer.choices[0].message.content
    assert answer.choices[0].message.tool_calls is None


def test_json_formats_hold_streamed_and_not_beside_free_answers_which_stay_the_same(
    client: openai.OpenAI,
) -> None:
    describe: Any = [{"role": "user", "content": "Describe Paris in JSON."}]

    def schema(_: int) -> str:
        answer = client.chat.completions.create(
            model="exact", messages=describe, response_format=JSON_SCHEMA, temperature=1.0, max_tokens=120
        )
        assert answer.choices[0].finish_reason == "stop"
        return answer.choices[0].message.content or ""

    def streamed_schema(_: int) -> str:
        chunks = list(
            client.chat.completions.create(
                model="exact",
                messages=describe,
                response_format=JSON_SCHEMA,
                temperature=1.0,
                max_tokens=120,
                stream=True,
            )
        )
        assert chunks[-1].choices[0].finish_reason == "stop"
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    def free(_: int) -> str:
        answer = client.chat.completions.create(model="exact", messages=STORY, seed=3, max_tokens=16)
        return answer.choices[0].message.content or ""

    alone = free(0)
    with ThreadPoolExecutor(6) as together:
        waiting = [together.submit(ask, 0) for ask in (schema, free, streamed_schema, free, schema, free)]
        texts = [one.result() for one in waiting]
    for text in texts[::2]:
        jsonschema.validate(json.loads(text), SCHEMA)
    assert texts[1::2] == [alone] * 3


def test_json_object_answers_with_an_object(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": 'Answer with {"capital": ...} for France.'}],
        response_format={"type": "json_object"},
        temperature=0,
        max_tokens=120,
    ).choices[0]
    assert answer.finish_reason == "stop"
    assert isinstance(json.loads(answer.message.content or ""), dict)


# --- errors ---------------------------------------------------------------------------------------------------------


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="model not found") as caught:
        client.chat.completions.create(model="smollm3", messages=FRANCE)
    assert caught.value.code == "model_not_found"


def test_a_bad_request_names_its_field(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="smollm2", messages=FRANCE, temperature=9)
    assert caught.value.param == "temperature"


def test_too_long_a_prompt_tells_both_numbers(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="2048") as caught:
        client.completions.create(model="exact", prompt=[1] * 3000)
    assert caught.value.code == "context_length_exceeded"
    assert "3000" in str(caught.value)


@pytest.mark.parametrize("kind", ["chat", "embedding"])
def test_a_model_of_the_other_kind_says_which_of_the_served_can(client: openai.OpenAI, kind: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        if kind == "chat":
            client.chat.completions.create(model="minilm", messages=FRANCE)
        else:
            client.embeddings.create(model="smollm2", input="x")
    assert ("smollm2" if kind == "chat" else "minilm") in str(caught.value)


def test_without_the_right_key_the_client_meets_an_authentication_error() -> None:
    with (
        serving("-m", ",name=dummy,driver=dummy", environment={"INFERLOOM_API_KEYS": "right"}) as served,
        connect(served, api_key="wrong") as stranger,
        connect(served, api_key="right") as friend,
    ):
        assert friend.chat.completions.create(model="dummy", messages=FRANCE).choices
        with pytest.raises(openai.AuthenticationError) as caught:
            stranger.chat.completions.create(model="dummy", messages=FRANCE)
        assert caught.value.code == "invalid_api_key"


# --- leaving --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def narrow(checkpoints: Path) -> Iterator[Served]:
    """A model that computes one sequence at a time."""
    source = checkpoints / "first"
    with serving("-m", f"{source},name=narrow,activation_dtype=float32,max_batch_size=1,threads=1") as served:
        yield served


def test_closing_a_stream_stops_its_generation(narrow: Served, checkpoints: Path) -> None:
    endless: Any = {"max_tokens": 8000, "extra_body": {"ignore_eos": True}}
    with connect(narrow) as client:
        for _ in range(3):
            stream = client.chat.completions.create(model="narrow", messages=FRANCE, stream=True, **endless)
            next(iter(stream))
            stream.close()
        # There is one place: it would be taken for a long time if nobody had told the engine.
        answer = client.chat.completions.create(model="narrow", messages=FRANCE, max_tokens=3)
        assert answer.choices[0].finish_reason in ("length", "stop")
    worker = worker_of(narrow, checkpoints / "first")
    wait_until(worker.rests)
