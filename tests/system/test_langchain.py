"""LangChain's OpenAI classes, pointed at a server of ours."""

from __future__ import annotations

from typing import Any, Literal

import openai
from factories.server import Served
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, SecretStr


class City(BaseModel):
    """A city."""

    name: Literal["Paris", "Rome"]
    capital: bool


def test_chat_openai_answers_streams_and_keeps_to_a_schema(starters: Served) -> None:
    chat = ChatOpenAI(
        base_url=f"{starters.url}/v1",
        api_key=SecretStr("none"),
        model="smollm2",
        temperature=0,
        max_retries=0,
    )
    question = "What is the capital of France?"
    answer = chat.invoke(question)
    assert "Paris" in str(answer.content)
    assert answer.usage_metadata is not None and answer.usage_metadata["output_tokens"] == 7
    assert "".join(str(chunk.content) for chunk in chat.stream(question)) == answer.content
    city: Any = chat.with_structured_output(City, method="json_schema").invoke("Describe Paris.")
    assert isinstance(city, City)


def test_openai_embeddings_are_ours(starters: Served, client: openai.OpenAI) -> None:
    # Without the check, which counts with OpenAI's own tokenizer, texts are sent as they are.
    embeddings = OpenAIEmbeddings(
        base_url=f"{starters.url}/v1",
        api_key=SecretStr("none"),
        model="minilm",
        check_embedding_ctx_length=False,
        max_retries=0,
    )
    rows = embeddings.embed_documents(["the sea", "a boat"])
    ours = client.embeddings.create(model="minilm", input=["the sea", "a boat"])
    assert rows == [row.embedding for row in ours.data]
    assert (
        embeddings.embed_query("the sea")
        == client.embeddings.create(model="minilm", input="the sea").data[0].embedding
    )
