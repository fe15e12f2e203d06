"""`POST /v1/completions`, driven by the official client."""

from __future__ import annotations

import pytest
from gateway.test_chat import events

from inferloom.types import TokenChunk, TokenLogprob, TopLogprob, Usage

ANSWER = "Paris is the capital of France."


def complete(gateway, **fields):
    return gateway.openai.completions.create(**{"model": "talker", "prompt": "Paris"} | fields)


async def post(gateway, **fields):
    return await gateway.http.post("/v1/completions", json={"prompt": "x"} | fields)


async def test_a_prompt_is_continued(gateway):
    answer = await complete(gateway)
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (ANSWER, "stop")
    assert answer.usage.total_tokens == 12
    assert gateway.talker.batches[0].text == "Paris"
    assert gateway.talker.batches[0].max_tokens == 16


@pytest.mark.parametrize(
    "prompt, texts, ids",
    [
        (["a", "b"], ["a", "b"], [None, None]),
        ([1, 2], [None], [[1, 2]]),
        ([[1], [2, 3]], [None, None], [[1], [2, 3]]),
    ],
)
async def test_prompts_of_every_shape(gateway, prompt, texts, ids):
    answer = await complete(gateway, prompt=prompt)
    assert [choice.index for choice in answer.choices] == list(range(len(texts)))
    assert [batch.text for batch in gateway.talker.batches] == texts
    assert [batch.token_ids for batch in gateway.talker.batches] == ids
    assert answer.usage.prompt_tokens == 5 * len(texts)


async def test_choices_of_several_prompts_are_numbered_by_prompt_then_choice(gateway):
    gateway.talker.script = lambda batch: [
        TokenChunk(index=i, text=f"{batch.text}{i}", finish_reason="stop") for i in range(batch.n)
    ]
    answer = await complete(gateway, prompt=["a", "b"], n=2)
    assert [choice.text for choice in answer.choices] == ["a0", "a1", "b0", "b1"]


async def test_a_stream_of_several_prompts_finishes_every_choice_and_adds_the_usages(gateway):
    response = await post(
        gateway, prompt=["a", "b"], n=2, stream=True, stream_options={"include_usage": True}
    )
    found = events(response.text)
    choices = [event["choices"][0] for event in found[:-1]]
    texts = ["".join(c["text"] for c in choices if c["index"] == i) for i in range(4)]
    assert texts == [ANSWER] * 4
    assert sorted(c["index"] for c in choices if c["finish_reason"]) == [0, 1, 2, 3]
    assert found[-1]["choices"] == []
    assert found[-1]["usage"]["completion_tokens"] == 28


async def test_echo_and_no_tokens_give_the_prompts_logprobs(gateway):
    def script(batch):
        assert (batch.echo, batch.max_tokens, batch.logprobs) == (True, 0, 2)
        first = TokenLogprob(1, "He", None, b"He")
        second = TokenLogprob(
            2, "llo", -1.5, b"llo", (TopLogprob(2, "llo", -1.5, b"llo"), TopLogprob(3, "y", -2, b"y"))
        )
        return [
            TokenChunk(text="Hello", logprobs=(first, second)),
            TokenChunk(finish_reason="length", usage=Usage(prompt_tokens=2)),
        ]

    gateway.talker.script = script
    answer = await complete(gateway, prompt="Hello", echo=True, max_tokens=0, logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs.tokens == ["He", "llo"]
    assert logprobs.token_logprobs == [None, -1.5]
    assert logprobs.top_logprobs == [None, {"llo": -1.5, "y": -2}]
    assert logprobs.text_offset == [0, 2]


async def test_streamed_logprobs_go_on_counting_characters(gateway):
    gateway.talker.script = lambda batch: [
        TokenChunk(text="ab", logprobs=(TokenLogprob(1, "ab", -1.0, b"ab"),)),
        TokenChunk(text="c", logprobs=(TokenLogprob(2, "c", -1.0, b"c"),)),
        TokenChunk(finish_reason="stop"),
    ]
    found = events((await post(gateway, logprobs=0, stream=True)).text)
    offsets = [e["choices"][0]["logprobs"]["text_offset"] for e in found if e["choices"][0]["logprobs"]]
    assert offsets == [[0], [2]]
    assert found[0]["choices"][0]["logprobs"]["top_logprobs"] is None


@pytest.mark.parametrize(
    "fields, param",
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [[1], "a", 2]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": ["x"] * 200}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"tokenizer_config": {}}, "tokenizer_config"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"messages": [{"role": "user", "content": "hi"}]}, "messages"),
        ({"prediction": {"type": "content", "content": "x"}}, "prediction"),
        ({"functions": []}, "functions"),
    ],
)
async def test_a_wrong_field_is_named(gateway, fields, param):
    response = await post(gateway, **fields)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


async def test_fields_of_chats_that_ask_for_nothing_do_no_harm(gateway):
    response = await post(
        gateway, tools=[], tool_choice="none", response_format={"type": "text"}, best_of=1, suffix=""
    )
    assert response.status_code == 200


async def test_a_missing_prompt_is_named(gateway):
    response = await gateway.http.post("/v1/completions", json={})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "prompt"


async def test_an_error_of_one_prompt_ends_the_others(gateway):
    from inferloom.errors import ContextLengthExceeded

    runner = gateway.talker
    execute = runner.execute

    async def second_fails(batch):
        handle = await execute(batch)
        if len(runner.batches) == 2:
            handle.fail(ContextLengthExceeded("too long", param="prompt"))
        return handle

    runner.execute = second_fails
    runner.hold_after = 1
    response = await post(gateway, prompt=["a", "b"])
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"
    assert runner.cancelled.is_set()
