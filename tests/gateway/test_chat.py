"""`POST /v1/chat/completions`, driven by the official client."""

from __future__ import annotations


async def test_a_chat_is_answered(gateway):
    answer = await gateway.openai.chat.completions.create(
        model="talker", messages=[{"role": "user", "content": "What is the capital of France?"}]
    )
    choice = answer.choices[0]
    assert choice.message.content == "Paris is the capital of France."
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "stop"
    assert answer.id.startswith("chatcmpl-")
    assert answer.usage.prompt_tokens == 5
    assert answer.usage.completion_tokens == 7
    assert answer.usage.total_tokens == 12
    assert answer.usage.prompt_tokens_details.cached_tokens == 2


async def test_a_stream_brings_the_role_the_words_a_finish_and_done(gateway):
    body = {"messages": [{"role": "user", "content": "Hi"}], "stream": True}
    response = await gateway.http.post("/v1/chat/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    print(response.text)
    assert response.text.endswith("data: [DONE]\n\n")
