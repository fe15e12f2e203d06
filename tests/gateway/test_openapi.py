"""`GET /openapi.json`: complete, valid, true; and nothing it allows leads to a 500."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator

import pytest
import schemathesis
from gateway.stand_in import config, two_models
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode

from inferloom.gateway.app import HANDLERS, build_app
from inferloom.gateway.listening import Listener
from inferloom.gateway.openapi import document


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    """A gateway over scripted models in a thread of its own."""
    catalog = two_models()
    listener = Listener(build_app(catalog, config(catalog)))
    sock = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=lambda: asyncio.run(listener.serve(sockets=[sock])))
    thread.start()
    yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    listener.should_exit = listener.force_exit = True
    thread.join()


@pytest.fixture(scope="module")
def api_schema(base_url: str):
    return schemathesis.openapi.from_url(f"{base_url}/openapi.json")


OPERATIONS = [
    (path.replace(":path", ""), method, mode)
    for method, path, _ in HANDLERS
    for mode in GenerationMode
    if method == "POST" or mode is GenerationMode.POSITIVE  # without a body there is nothing to get wrong
    if path != "/v1/events"  # its answer does not end; test_events.py has its parameters
]


@pytest.mark.parametrize("path, method, mode", OPERATIONS)
def test_nothing_the_description_allows_or_forbids_is_a_500(api_schema, base_url, path, method, mode):
    operation = api_schema[path][method]

    @given(operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=25,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    def check(case) -> None:
        response = case.call(base_url=base_url, timeout=20)
        assert response.status_code < 500, response.text

    check()


async def test_every_route_is_described_and_nothing_else(gateway):
    described = (await gateway.http.get("/openapi.json")).json()["paths"]
    found = {(method.upper(), path) for path, methods in described.items() for method in methods}
    assert found == {(method, path.replace(":path", "")) for method, path, _ in HANDLERS}


async def test_every_field_of_a_request_is_described(gateway):
    schemas = (await gateway.http.get("/openapi.json")).json()["components"]["schemas"]
    for field in (
        "temperature",
        "top_k",
        "min_p",
        "stop",
        "ignore_eos",
        "tools",
        "response_format",
        "logit_bias",
    ):
        assert field in schemas["ChatRequest"]["properties"]
    assert schemas["ChatRequest"]["required"] == ["messages"]
    assert len(document()) > 10_000
