"""What is true of every endpoint: bodies, content types, ids, and errors in one envelope."""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferloom.errors import InvalidRequest, LoadFailed, OutOfMemory
from inferloom.gateway.wire.decoding import MAX_DEPTH, refuse_depth

JSON = {"content-type": "application/json"}
CHAT = "/v1/chat/completions"
GOOD = b'{"messages":"hi"}'


async def post(gateway, body: bytes, path: str = CHAT, headers: dict[str, str] = JSON):
    return await gateway.http.post(path, content=body, headers=headers)


@pytest.mark.parametrize(
    "body, code",
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b'{"messages":"a",}', "invalid_json"),
        (b'{"messages":"a","temperature":NaN}', "invalid_json"),
        (b'{"messages":"a","temperature":Infinity}', "invalid_json"),
        (b'{"messages":"\\ud800"}', "invalid_json"),
        (b'{"messages":"\\udc00"}', "invalid_json"),
        (b'{"messages":"a","unknown":"\\ud800"}', "invalid_json"),
        (b'{"messages":"\xff"}', "invalid_json"),
        (b"[]", "invalid_request"),
        (b'"text"', "invalid_request"),
        (b"null", "invalid_request"),
        (b'{"messages":"a","temperature":1e999}', "invalid_request"),
        (b'{"messages":"a","metadata":{"a":' + b"[" * 100 + b"]" * 100 + b"}}", "nested_too_deep"),
        (b'{"messages":"a","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested_too_deep"),
        (b'{"messages":"a","x":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}", "nested_too_deep"),
    ],
)
async def test_a_body_that_cannot_be_read_is_a_400_with_a_sentence(gateway, body, code):
    response = await post(gateway, body)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, code)
    assert set(error) == {"message", "type", "param", "code"}
    assert len(error["message"]) > 20


async def test_malformed_json_is_told_its_place(gateway):
    response = await post(gateway, b'{"messages":"a",}')
    assert "byte 16" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None]
)
async def test_a_body_that_is_not_json_is_a_415(gateway, kind):
    response = await post(gateway, GOOD, headers={"content-type": kind} if kind else {})
    assert response.status_code == 415
    assert response.json()["error"]["code"] == "unsupported_media_type"


@pytest.mark.parametrize(
    "kind", ["application/json; charset=utf-8", "Application/JSON", "application/vnd.x+json"]
)
async def test_json_by_its_other_names_is_read(gateway, kind):
    assert (await post(gateway, GOOD, headers={"content-type": kind})).status_code == 200


async def test_a_compressed_body_is_refused(gateway):
    assert (await post(gateway, GOOD, headers=JSON | {"content-encoding": "gzip"})).status_code == 415


async def test_a_body_over_32_mib_is_a_413_by_its_declared_length(gateway):
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: 33554433\r\n\r\n{"
    )
    answer = await reader.readuntil(b"\r\n\r\n")
    assert b" 413 " in answer
    assert b"connection: close" in answer
    writer.close()


async def test_a_body_over_32_mib_is_a_413_by_what_arrives(gateway):
    async def parts():
        for _ in range(34):
            yield b" " * (1 << 20)

    response = await gateway.http.post(CHAT, content=parts(), headers=JSON)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "request_too_large"


async def test_a_body_in_pieces_is_read_whole(gateway):
    async def parts():
        yield GOOD[:5]
        yield GOOD[5:]

    assert (await gateway.http.post(CHAT, content=parts(), headers=JSON)).status_code == 200


@pytest.mark.parametrize(
    "method, path", [("GET", "/nothing"), ("POST", "/v1/nothing"), ("GET", "/v1/models2/")]
)
async def test_an_unknown_path_is_a_404_in_the_envelope(gateway, method, path):
    response = await gateway.http.request(method, path)
    assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    "method, path, allowed",
    [("GET", CHAT, "POST"), ("DELETE", "/v1/models", "GET"), ("POST", "/v1/models/whatever", "GET")],
)
async def test_a_wrong_method_is_a_405_in_the_envelope(gateway, method, path, allowed):
    response = await gateway.http.request(method, path)
    assert (response.status_code, response.json()["error"]["code"]) == (405, "method_not_allowed")
    assert allowed in response.headers["allow"]


async def test_what_is_not_http_is_told_so_in_the_envelope(gateway):
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(b"NONSENSE\r\n\r\n")
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert json.loads(body)["error"]["code"] == "invalid_http"
    writer.close()


async def test_a_sane_request_id_is_taken_and_echoed(gateway):
    response = await gateway.http.get("/health", headers={"x-request-id": "abc-1.2:3_4"})
    assert response.headers["x-request-id"] == "abc-1.2:3_4"


@pytest.mark.parametrize("given", ["has space", "x" * 200, "a;b", ""])
async def test_any_other_request_id_is_replaced(gateway, given):
    response = await gateway.http.get("/health", headers={"x-request-id": given})
    assert response.headers["x-request-id"].startswith("req_")


async def test_errors_and_streams_carry_the_request_id_too(gateway):
    for path, body in ((CHAT, b"{"), (CHAT, b'{"messages":"a","stream":true}'), ("/nothing", b"{}")):
        response = await post(gateway, body, path, JSON | {"x-request-id": "mine"})
        assert response.headers["x-request-id"] == "mine"


async def test_an_unexpected_error_is_a_500_that_tells_nothing_and_is_logged(gateway, caplog):
    def explode(batch):
        raise RuntimeError("secret detail")

    gateway.talker.script = explode
    response = await post(gateway, GOOD, headers=JSON | {"x-request-id": "boom"})
    assert response.status_code == 500
    assert "secret" not in response.text
    assert response.json()["error"]["code"] == "internal_error"
    record = next(r for r in caplog.records if r.levelname == "ERROR")
    assert record.request_id == "boom"
    assert record.exc_info is not None


async def test_a_failed_load_is_a_503_with_retry_after(gateway):
    gateway.catalog.default.load_error = LoadFailed("it broke", retry_after=3.2)
    response = await post(gateway, GOOD)
    assert (response.status_code, response.headers["retry-after"]) == (503, "4")
    assert response.json()["error"]["message"] == "it broke"


async def test_out_of_memory_says_so(gateway):
    gateway.catalog.default.load_error = OutOfMemory("needs 9 GiB, has 1")
    response = await post(gateway, GOOD)
    assert response.status_code == 507
    assert "out of memory" in response.json()["error"]["message"]


json_values = st.recursive(
    st.none() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
)


@given(json_values, st.integers(0, 80))
def test_depth_is_counted_outside_of_strings(value, wrapped):
    def depth(item):
        children = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        own = 1 if isinstance(item, dict | list) else 0
        return own + max((depth(child) for child in children), default=0)

    for _ in range(wrapped):
        value = [value, '[{"\\']
    body = json.dumps(value).encode()
    if depth(value) > MAX_DEPTH:
        with pytest.raises(InvalidRequest):
            refuse_depth(body)
    else:
        refuse_depth(body)
