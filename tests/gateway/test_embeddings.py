"""`POST /v1/embeddings`, driven by the official client."""

from __future__ import annotations

import base64
import struct

import openai
import pytest


def embed(gateway, **fields):
    return gateway.openai.embeddings.create(**{"model": "vectors", "input": "hello"} | fields)


async def post(gateway, **fields):
    return await gateway.http.post("/v1/embeddings", json={"model": "vectors", "input": "x"} | fields)


async def test_texts_are_embedded_in_their_order(gateway):
    answer = await embed(gateway, input=["a", "b"])
    assert [row.index for row in answer.data] == [0, 1]
    assert answer.data[0].embedding == [0.5, -0.5, 0.5, -0.5]
    assert answer.data[1].embedding == [0.5, -0.5, 0.5, 0.5]
    assert (answer.model, answer.object, answer.data[0].object) == ("vectors", "list", "embedding")
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (6, 6)


async def test_numbers_and_base64_say_the_same(gateway):
    as_numbers = (await post(gateway, encoding_format="float")).json()["data"][0]["embedding"]
    as_text = (await post(gateway, encoding_format="base64")).json()["data"][0]["embedding"]
    assert list(struct.unpack("<4f", base64.b64decode(as_text))) == as_numbers


@pytest.mark.parametrize(
    "given, reached",
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]])],
)
async def test_inputs_of_every_shape(gateway, given, reached):
    await embed(gateway, input=given)
    assert gateway.vectors.batches[0].inputs == reached


async def test_dimensions_reach_the_runner(gateway):
    await embed(gateway, dimensions=2)
    assert gateway.vectors.batches[0].dimensions == 2


@pytest.mark.parametrize(
    "fields, param",
    [
        ({"input": []}, "input"),
        ({"input": ""}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": [1.5]}, "input"),
        ({"input": None}, "input"),
        ({"input": ["x"] * 2049}, "input"),
        ({"encoding_format": "binary"}, "encoding_format"),
        ({"dimensions": 0}, "dimensions"),
    ],
)
async def test_a_wrong_field_is_named(gateway, fields, param):
    response = await post(gateway, **fields)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


async def test_an_embedding_request_to_a_chat_model_says_which_models_can(gateway):
    with pytest.raises(openai.BadRequestError, match="vectors can"):
        await embed(gateway, model="talker")
