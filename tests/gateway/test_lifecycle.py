"""Loading, keeping, pinning and planning through HTTP, with workers that are processes."""

from __future__ import annotations

import asyncio

import pytest
from gateway.asking import ask, shown
from gateway.stand_in import until

MIB = 1 << 20


async def post(gateway, verb: str, **body):
    return await gateway.http.post(f"/v1/models/{verb}", json=body)


# --- unload ---------------------------------------------------------------------------------------------------------


async def test_unload_answers_with_the_bytes_that_came_back(workers):
    gateway = await workers(a={})
    await post(gateway, "load", model_id="a")
    body = (await post(gateway, "unload", model_id="a")).json()
    assert body["state"] == "unloaded"
    assert body["freed_bytes"] > MIB
    again = await post(gateway, "unload", model_id="a")
    assert (again.status_code, again.json()["freed_bytes"]) == (200, 0)


async def test_the_time_to_drain_is_the_requests(workers):
    gateway = await workers(
        a={"tokens_per_second": 5, "text": "one two three four five six seven eight nine ten"}
    )
    stream = asyncio.create_task(ask(gateway, "a"))
    await until(lambda: gateway.catalog.status("a").leases == 1)
    body = (await post(gateway, "unload", model_id="a", timeout_secs=0)).json()
    assert body["state"] == "unloaded"
    assert (await stream).json()["error"]["code"] == "cancelled"


@pytest.mark.parametrize("seconds", [-1, "soon"])
async def test_a_wrong_time_to_drain_is_refused(gateway, seconds):
    response = await post(gateway, "unload", model_id="talker", timeout_secs=seconds)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "timeout_secs")


async def test_a_load_is_waited_for_as_long_as_its_caller_says(workers):
    gateway = await workers(a={"load_secs": 30})
    response = await post(gateway, "load", model_id="a", timeout_secs=0.05)
    assert response.status_code == 504
    assert "0.05 s (timeout_secs)" in response.json()["error"]["message"]


async def test_force_is_for_unloading(gateway):
    response = await post(gateway, "load", model_id="talker", force=True)
    assert response.headers["x-inferloom-ignored"] == "force"


# --- keep_alive -----------------------------------------------------------------------------------------------------


async def test_a_request_says_how_long_its_model_stays(workers):
    gateway = await workers(a={})
    assert (await ask(gateway, "a", keep_alive="5m")).status_code == 200
    expires = (await shown(gateway, "a"))["expires_at"]
    assert expires == pytest.approx((await shown(gateway, "a"))["since"] + 300, abs=30)
    await ask(gateway, "a", keep_alive=-1)
    assert (await shown(gateway, "a"))["expires_at"] is None
    await ask(gateway, "a", keep_alive=0)
    await until(lambda: gateway.catalog.status("a").state == "unloaded")


@pytest.mark.parametrize(
    "path, body",
    [
        ("/v1/chat/completions", {"messages": "x"}),
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/embeddings", {"input": "x", "model": "vectors"}),
        ("/tokenize", {"text": "x"}),
        ("/detokenize", {"tokens": [97]}),
        ("/v1/models/load", {"model_id": "talker"}),
        ("/v1/models/reload", {"model_id": "talker"}),
    ],
)
async def test_every_api_that_uses_a_model_takes_keep_alive(gateway, path, body):
    response = await gateway.http.post(path, json={**body, "keep_alive": "1h30m"})
    assert response.status_code == 200
    assert "x-inferloom-ignored" not in response.headers
    assert gateway.catalog.kept[-1] == 5400
    for wrong in ("soon", "5 parsecs", True, [], {}):
        response = await gateway.http.post(path, json={**body, "keep_alive": wrong})
        assert (response.status_code, response.json()["error"]["param"]) == (400, "keep_alive"), wrong


async def test_a_load_says_how_long_the_model_stays(workers):
    gateway = await workers(a={})
    await post(gateway, "load", model_id="a", keep_alive=600)
    details = await shown(gateway, "a")
    assert details["expires_at"] == pytest.approx(details["since"] + 600, abs=30)
    await post(gateway, "load", model_id="a", keep_alive=0.02)
    await until(lambda: gateway.catalog.status("a").state == "unloaded")


# --- pin, plan, default ---------------------------------------------------------------------------------------------


async def test_a_pinned_model_is_not_pushed_out(workers):
    gateway = await workers(budget="100MiB", a={"weights_mb": 60}, b={"weights_mb": 60})
    await post(gateway, "load", model_id="a")
    body = (await post(gateway, "pin", model_id="a")).json()
    assert (body["pinned"], body["status"]) == (True, "loaded")
    assert (await shown(gateway, "a"))["pinned"] is True
    refused = await post(gateway, "load", model_id="b")
    assert (refused.status_code, refused.json()["error"]["code"]) == (507, "out_of_memory")
    assert refused.json()["error"]["message"].startswith("out of memory")
    await post(gateway, "pin", model_id="a", pin=False)
    assert (await post(gateway, "load", model_id="b")).status_code == 200
    assert (await shown(gateway, "a"))["state"] == "unloaded"


async def test_a_plan_says_who_goes_and_changes_nothing(workers):
    gateway = await workers(budget="100MiB", a={"weights_mb": 60}, b={"weights_mb": 50})
    await post(gateway, "load", model_id="a")
    body = (await post(gateway, "plan", model_id="b")).json()
    assert (body["model_id"], body["fits"], body["loaded"], body["waits"]) == ("b", True, False, False)
    assert body["evicts"] == [{"model_id": "a", "bytes": 60 * MIB}]
    assert (body["bytes"]["weights"], body["free_bytes"]) == (50 * MIB, 40 * MIB)
    assert body["expected_secs"] > 0
    assert (await shown(gateway, "a"))["state"] == "ready"
    assert (await shown(gateway, "b"))["state"] == "declared"


async def test_a_plan_that_does_not_fit_says_why(workers):
    gateway = await workers(budget="100MiB", a={"weights_mb": 600})
    response = await post(gateway, "plan", model_id="a")
    body = response.json()
    assert (response.status_code, body["fits"], body["evicts"], body["expected_secs"]) == (
        200,
        False,
        [],
        None,
    )
    assert body["reason"].startswith("out of memory")


async def test_the_default_model_is_chosen_and_never_moves_by_itself(workers):
    gateway = await workers(a={"text": "of a"}, b={"text": "of b"})
    body = (await gateway.http.put("/v1/models/default", json={"model_id": "b"})).json()
    assert body == {"model_id": "b", "default": "b", "status": "unloaded"}
    assert (await shown(gateway, "b"))["state"] == "declared"
    for _ in range(2):
        answer = await gateway.http.post("/v1/chat/completions", json={"messages": "x"})
        assert answer.json()["choices"][0]["message"]["content"] == "of b"
        await post(gateway, "unload", model_id="b")
    listing = (await gateway.http.get("/v1/models")).json()["data"]
    assert [(one["id"], one["root"]) for one in listing] == [("default", "b"), ("a", "a"), ("b", "b")]


@pytest.mark.parametrize("method, path", [("POST", "pin"), ("POST", "plan"), ("PUT", "default")])
async def test_a_model_that_is_not_declared_is_not_found(gateway, method, path):
    response = await gateway.http.request(method, f"/v1/models/{path}", json={"model_id": "nobody"})
    body = response.json()
    assert (response.status_code, body["status"], body["model_id"]) == (404, "not_found", "nobody")
    assert body["error"]["code"] == "model_not_found"


# --- showing --------------------------------------------------------------------------------------------------------


async def test_a_model_tells_what_it_holds_and_how_it_came(workers):
    gateway = await workers(a={"weights_mb": 10, "kv_mb": 20})
    before = await shown(gateway, "a")
    assert (before["bytes"], before["last_load"], before["loads"], before["keep_alive"]) == (
        None,
        None,
        0,
        -1,
    )
    await post(gateway, "load", model_id="a")
    await until(lambda: gateway.catalog.status("a").bytes.measured is not None)
    after = await shown(gateway, "a")
    assert (after["bytes"]["weights"], after["bytes"]["kv"]) == (10 * MIB, 20 * MIB)
    assert after["bytes"]["estimate"] == sum(after["bytes"][kind] for kind in ("weights", "kv", "workspace"))
    assert after["bytes"]["measured"] > 0
    assert (after["loads"], after["evictions"], after["leases"], after["waiting"]) == (1, 0, 0, 0)
    assert 0 < sum(after["last_load"]["stages"].values()) <= after["last_load"]["seconds"] * 1.5
    assert {"open", "pack", "room", "map"} <= set(after["last_load"]["stages"])
    assert before["since"] < after["since"]
