"""`timeout_secs` of a request: the time it has in line, while its model loads, and to the end of its answer."""

from __future__ import annotations

import asyncio

import pytest
from gateway.stand_in import until

from inferloom.gateway.exchange import Limits

LONG = {"load_secs": 30.0}
CALLS = {
    "/v1/chat/completions": {"messages": "x"},
    "/v1/completions": {"prompt": "x"},
    "/v1/embeddings": {"input": "x"},
    "/tokenize": {"text": "x"},
    "/detokenize": {"tokens": [1]},
}


async def ask(gateway, path: str = "/v1/completions", **fields: object):
    return await gateway.http.post(path, json=CALLS[path] | fields)


def error_of(response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


@pytest.mark.parametrize("path", CALLS)
async def test_who_has_waited_long_enough_for_a_load_is_told_and_nobody_waits_for_it_any_more(workers, path):
    gateway = await workers(a=LONG)
    response = await ask(gateway, path, timeout_secs=0.2)
    assert error_of(response) == (504, "timeout")
    assert int(response.headers["retry-after"]) >= 1
    await until(lambda: gateway.catalog.status("a").state == "unloaded")


async def test_others_who_wait_for_the_same_load_are_not_harmed(workers):
    gateway = await workers(a={"load_secs": 0.6, "text": "hi"})
    patient = asyncio.create_task(ask(gateway))
    hasty = await ask(gateway, timeout_secs=0.1)
    assert error_of(hasty) == (504, "timeout")
    assert (await patient).json()["choices"][0]["text"] == "hi"
    assert gateway.catalog.status("a").loads == 1


async def test_less_time_than_the_load_took_last_is_refused_at_once(workers):
    gateway = await workers(a={"load_secs": 0.5})
    await gateway.catalog.load("a")
    await gateway.catalog.unload("a")
    response = await ask(gateway, timeout_secs=0.1)
    assert error_of(response) == (503, "model_unavailable")
    assert int(response.headers["retry-after"]) >= 1
    assert gateway.catalog.status("a").state == "unloaded"
    assert (await ask(gateway, timeout_secs=30)).status_code == 200


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"])
async def test_it_counts_in_line(workers, path):
    gateway = await workers(a={"tokens_per_second": 5.0}, server={"max_concurrent_requests": 1})
    running = asyncio.create_task(ask(gateway, max_tokens=20, ignore_eos=True))
    await until(lambda: gateway.service.admission.running == 1)
    response = await ask(gateway, path, timeout_secs=0.1)
    assert error_of(response) == (504, "timeout")
    assert "timeout_secs" in response.json()["error"]["message"]
    assert response.headers["retry-after"] == "1"
    running.cancel()


async def test_it_bounds_the_whole_answer(workers):
    gateway = await workers(a={"tokens_per_second": 5.0}, limits=Limits(sweep=0.01))
    await gateway.catalog.load("a")
    body = {"max_tokens": 50, "ignore_eos": True, "timeout_secs": 0.5}
    assert error_of(await ask(gateway, **body)) == (504, "timeout")
    streamed = await ask(gateway, stream=True, **body)
    assert streamed.status_code == 200
    *_, error, done = streamed.text.strip().split("\n\n")
    assert '"timeout"' in error
    assert done == "data: [DONE]"
    assert gateway.catalog.status("a").state == "ready"


async def test_the_models_own_limit_holds_beside_it(workers):
    gateway = await workers(a={"tokens_per_second": 5.0}, server={"first_token_timeout_secs": 60.0})
    await gateway.catalog.load("a")
    answered = await ask(gateway, max_tokens=1, timeout_secs=3600)
    assert answered.status_code == 200
    assert "x-inferloom-ignored" not in answered.headers


@pytest.mark.parametrize("given", [0, -1, "soon"])
async def test_a_time_that_is_none_is_refused(gateway, given):
    response = await ask(gateway, timeout_secs=given)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "timeout_secs"
