"""What other servers of several models get wrong, B1 to B17, named for what must not happen here; through HTTP.

| defect | test |
|---|---|
| B1 a reload's early return leaves the model reloading for ever | `test_no_model_stays_reloading_after_a_reload_with_nothing_to_do` |
| B2 two reloads at once load twice and leak a worker | `test_no_worker_is_lost_by_reloads_at_the_same_time` |
| B3 requests during a reload fail | `test_no_request_fails_because_its_model_is_being_reloaded` |
| B4 the default model moves or is lost | `test_the_default_model_does_not_move`, M7 |
| B5 work in progress ends silently | `test_no_stream_ends_without_a_reason` |
| B6 a model is nowhere for a moment | `test_swaps.test_swaps_under_load_lose_no_request_…` |
| B7 unload answers before the memory is free | M9 |
| B8 lifecycle calls lock each other out | `test_no_lifecycle_calls_wait_for_each_other_for_ever` |
| B9 an unload is lost on a full queue | `test_no_unload_is_lost_behind_a_flood_of_requests` |
| B12 errors with HTTP 200 | `test_no_error_has_status_200` |
| B13 prompts of equal length fail as a batch | `test_no_batch_of_equal_prompts_fails` |
| B14 streams of several choices lose their ends | `test_no_choice_of_a_stream_loses_its_end` |
| B15 gauges without a model, ids that collide, a random order | `test_no_gauge_is_without_its_model_and_no_two_answers_have_one_id`, M11 |
| B17 only loaded models can be the default or removed | `test_no_model_must_be_loaded_to_become_the_default_or_to_be_removed` |

B10, B11 and B16 are of features that are not there. M: `test_lifecycle_requirements`.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from factories.server import Served, serving
from system.clients import change, streaming
from system.processes import gateway_of, wait_until

NAMES = ("one", "two", "slow", "tiny", "small")
FLOOD = 150
LIFECYCLE_SECS = 30.0


@pytest.fixture(scope="module")
def house(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("house")
    flags = [
        ",name=one,driver=dummy,text=one,load_secs=0.2,lazy=true",
        ",name=two,driver=dummy,text=two,load_secs=0.2,lazy=true",
        ",name=slow,driver=dummy,text=slow,tokens_per_second=5,lazy=true",
        f"{checkpoints / 'first'},name=tiny,threads=1,lazy=true",
        f"{checkpoints / 'first'},name=small,quantization=int8,threads=1,lazy=true",
    ]
    models = [part for flag in flags for part in ("-m", flag)]
    with serving(*models, environment={"INFERLOOM_HOME": str(home)}) as served:
        yield served


def chat(served: Served, **fields: object) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 8, **fields}
    return httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=60)


def call(served: Served, verb: str, model: str, **fields: object) -> httpx.Response:
    return httpx.post(f"{served.url}/v1/models/{verb}", json={"model_id": model, **fields}, timeout=60)


def details(served: Served, model: str) -> Any:
    return httpx.get(f"{served.url}/v1/models/{model}").json()


def workers(served: Served) -> int:
    return len(gateway_of(served).children) - 1  # without the forkserver


def unload_all(served: Served) -> None:
    for name in NAMES:
        change(served, "unload", name)
    assert workers(served) == 0


def test_no_model_stays_reloading_after_a_reload_with_nothing_to_do(house: Served) -> None:  # B1
    change(house, "load", "one")
    rows = httpx.get(f"{house.url}/v1/models").json()
    for _ in range(2):
        assert change(house, "reload", "one")["status"] == "loaded"
        assert change(house, "status", "one")["status"] == "loaded"
        assert httpx.get(f"{house.url}/v1/models").json() == rows
    assert change(house, "unload", "one")["status"] == "unloaded"
    assert chat(house, model="one").status_code == 200
    assert change(house, "status", "one")["status"] == "loaded"


def test_no_worker_is_lost_by_reloads_at_the_same_time(house: Served) -> None:  # B2
    unload_all(house)
    before = details(house, "one")["loads"]
    with ThreadPoolExecutor(8) as callers:
        answers = list(callers.map(lambda verb: call(house, verb, "one"), ["reload", "load"] * 4))
    assert [(answer.status_code, answer.json()["status"]) for answer in answers] == [(200, "loaded")] * 8
    assert workers(house) == 1
    assert details(house, "one")["loads"] == before + 1
    change(house, "unload", "one")
    assert workers(house) == 0


def test_no_request_fails_because_its_model_is_being_reloaded(house: Served) -> None:  # B3
    change(house, "unload", "one")
    before = details(house, "one")["loads"]
    with ThreadPoolExecutor(13) as callers:
        reload = callers.submit(call, house, "reload", "one")
        wait_until(lambda: details(house, "one")["status"] == "reloading")
        answers = list(callers.map(lambda _: chat(house, model="one"), range(12)))
        assert reload.result().json()["status"] == "loaded"
    assert [answer.status_code for answer in answers] == [200] * 12
    assert details(house, "one")["loads"] == before + 1


def test_the_default_model_does_not_move(house: Served) -> None:  # B4
    for name in NAMES:
        change(house, "load", name)
        change(house, "unload", name)
        assert details(house, "default")["name"] == "one"
    unload_all(house)
    assert chat(house).json()["choices"][0]["message"]["content"] == "one"


def test_no_stream_ends_without_a_reason(house: Served) -> None:  # B5
    with streaming(house, "slow", tokens=500) as stream:
        stream.read(tokens=1)
        assert change(house, "unload", "slow", force=True)["status"] == "unloaded"
        stream.read()  # to [DONE]
    assert stream.error["code"] == "cancelled" and "unload" in stream.error["message"]


def test_no_lifecycle_calls_wait_for_each_other_for_ever(house: Served) -> None:  # B8
    statuses: list[int] = []

    def storm(number: int) -> None:
        name, other = ("one", "two") if number % 2 else ("two", "one")
        with httpx.Client(base_url=house.url, timeout=LIFECYCLE_SECS) as client:
            alias = {"id": f"alias-{number}", "alias_of": name}
            for _ in range(5):
                answers = [
                    client.post("/v1/models/unload", json={"model_id": name}),
                    client.post("/v1/models", json=alias),
                    client.put("/v1/models/default", json={"model_id": other}),
                    client.post("/v1/models/reload", json={"model_id": other}),
                    client.delete(f"/v1/models/alias-{number}"),
                    client.get("/v1/models"),
                ]
                statuses.extend(answer.status_code for answer in answers)

    with ThreadPoolExecutor(6) as callers:
        list(callers.map(storm, range(6)))
    # an unload may stop the load that another one asked for: that is said, and is no fault
    assert set(statuses) <= {200, 201, 503} and statuses.count(503) < len(statuses) / 6
    answer = httpx.put(f"{house.url}/v1/models/default", json={"model_id": "one"})
    assert answer.status_code == 200
    assert chat(house).status_code == 200
    assert [row["id"] for row in httpx.get(f"{house.url}/v1/models").json()["data"]] == ["default", *NAMES]
    unload_all(house)


async def test_no_unload_is_lost_behind_a_flood_of_requests(house: Served) -> None:  # B9
    await asyncio.to_thread(change, house, "load", "slow")
    limits = httpx.Limits(max_connections=FLOOD)
    async with httpx.AsyncClient(base_url=house.url, timeout=60, limits=limits) as client:
        body = {"model": "slow", "prompt": "x", "max_tokens": 500, "ignore_eos": True}
        asking = [asyncio.create_task(client.post("/v1/completions", json=body)) for _ in range(FLOOD)]
        await asyncio.to_thread(wait_until, lambda: details(house, "slow")["leases"] >= 50)
        answer = await asyncio.to_thread(change, house, "unload", "slow", force=True, timeout_secs=0)
        assert answer["state"] == "unloaded"
        # who had no place yet is served by the model's next life, which the same unload ends
        while not all(task.done() for task in asking):
            await asyncio.to_thread(change, house, "unload", "slow", force=True)
        statuses = {task.result().status_code for task in asking}
    assert statuses <= {429, 499, 503}
    assert all("error" in task.result().json() for task in asking)
    await asyncio.to_thread(change, house, "unload", "slow", force=True)
    await asyncio.to_thread(wait_until, lambda: workers(house) == 0)


def test_no_error_has_status_200(house: Served) -> None:  # B12
    for verb in ("load", "unload", "reload", "status", "pin", "plan"):
        answer = call(house, verb, "nobody")
        assert (answer.status_code, answer.json()["status"]) == (404, "not_found")
        assert answer.json()["error"]["code"] == "model_not_found"
        refused = httpx.post(f"{house.url}/v1/models/{verb}", json={})
        assert refused.status_code == 400
    assert call(house, "unload", "one", timeout_secs=-1).status_code == 400
    assert (
        httpx.post(f"{house.url}/v1/models/re_isq", json={"model_id": "one", "ggml_type": "Q4K"}).status_code
        == 400
    )
    assert httpx.put(f"{house.url}/v1/models/default", json={"model_id": "nobody"}).status_code == 404
    assert httpx.delete(f"{house.url}/v1/models/nobody").status_code == 404
    assert httpx.delete(f"{house.url}/v1/models/one").status_code == 409  # the default model
    assert httpx.post(f"{house.url}/v1/models", json={"id": "one", "alias_of": "two"}).status_code == 409
    taken = {"id": "new", "source": "/etc"}
    assert httpx.post(f"{house.url}/v1/models", json=taken).status_code == 403


@pytest.mark.parametrize("model", ["tiny", "small"])
def test_no_batch_of_equal_prompts_fails(house: Served, model: str) -> None:  # B13
    prompts = ["The quick brown fox", "The quick brown dog", "The quick green fox", "The lazy brown fox"]
    body = {"model": model, "prompt": prompts, "max_tokens": 4, "ignore_eos": True, "temperature": 0}
    whole = httpx.post(f"{house.url}/v1/completions", json=body, timeout=60)
    assert whole.status_code == 200, whole.text
    assert [choice["finish_reason"] for choice in whole.json()["choices"]] == ["length"] * 4
    with ThreadPoolExecutor(4) as callers:
        alone = callers.map(
            lambda prompt: httpx.post(
                f"{house.url}/v1/completions", json={**body, "prompt": prompt}, timeout=60
            ),
            prompts,
        )
        assert [answer.status_code for answer in alone] == [200] * 4


@pytest.mark.parametrize("model", ["one", "tiny"])
def test_no_choice_of_a_stream_loses_its_end(house: Served, model: str) -> None:  # B14
    body = {"model": model, "prompt": "x", "max_tokens": 6, "n": 3, "seed": 7, "temperature": 1.0}
    body |= {"ignore_eos": True}
    whole = httpx.post(f"{house.url}/v1/completions", json=body, timeout=60).json()["choices"]
    events = httpx.post(f"{house.url}/v1/completions", json={**body, "stream": True}, timeout=60).text
    assert events.endswith("data: [DONE]\n\n")
    texts, ends = {0: "", 1: "", 2: ""}, dict.fromkeys(range(3), "")
    for line in events.splitlines():
        if line.startswith("data: {"):
            for choice in json.loads(line[6:])["choices"]:
                assert not ends[choice["index"]], "something follows the end of a choice"
                texts[choice["index"]] += choice["text"]
                ends[choice["index"]] = choice["finish_reason"] or ""
    assert ends == dict.fromkeys(range(3), "length")
    assert texts == {choice["index"]: choice["text"] for choice in whole}


def test_no_gauge_is_without_its_model_and_no_two_answers_have_one_id(house: Served) -> None:  # B15
    ids: set[str] = set()
    guard = threading.Lock()

    def ask(model: str) -> None:
        found = chat(house, model=model).json()["id"]
        with guard:
            ids.add(found)

    with ThreadPoolExecutor(6) as callers:
        list(callers.map(ask, ["one", "two", "tiny"] * 4))
    assert len(ids) == 12
    page = httpx.get(f"{house.url}/metrics").text
    gauges = {line.split()[2] for line in page.splitlines() if line.startswith("# TYPE") and "gauge" in line}
    own = [line for line in page.splitlines() if line.split("{")[0].split(" ")[0] in gauges]
    of_models = [line for line in own if line.startswith(("inferloom_model", "inferloom_engine"))]
    assert of_models and all('model="' in line for line in of_models)
    for name in ("one", "two", "tiny"):
        assert any(f'model="{name}"' in line for line in of_models)


def test_no_model_must_be_loaded_to_become_the_default_or_to_be_removed(house: Served) -> None:  # B17
    unload_all(house)
    chosen = httpx.put(f"{house.url}/v1/models/default", json={"model_id": "two"})
    assert (chosen.status_code, chosen.json()["status"]) == (200, "unloaded")
    assert workers(house) == 0
    assert chat(house).json()["choices"][0]["message"]["content"] == "two"
    # the last one that is loaded can go while the others are not
    assert httpx.post(f"{house.url}/v1/models", json={"id": "guest", "alias_of": "one"}).status_code == 201
    change(house, "unload", "two")
    assert chat(house, model="guest").status_code == 200
    assert httpx.delete(f"{house.url}/v1/models/guest").status_code == 200
    assert workers(house) == 0
    assert httpx.post(f"{house.url}/v1/models", json={"id": "guest", "alias_of": "one"}).status_code == 201
    assert httpx.delete(f"{house.url}/v1/models/guest").status_code == 200  # one that is not loaded
    httpx.put(f"{house.url}/v1/models/default", json={"model_id": "one"})
