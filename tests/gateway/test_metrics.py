"""`GET /metrics`: what is counted of models, and that the labels stay few."""

from __future__ import annotations

import asyncio

import pytest
from gateway.stand_in import until
from prometheus_client.parser import text_string_to_metric_families

from inferloom.catalog.lifecycle import ModelBytes, State, Transition
from inferloom.gateway import metrics as metrics_module
from inferloom.gateway.metrics import Metrics
from inferloom.types import Usage

CHAT = {"messages": [{"role": "user", "content": "x"}]}


async def shown(gateway) -> dict[tuple[str, frozenset], float]:
    """Every sample by its name and labels."""
    return samples((await gateway.http.get("/metrics")).text)


def samples(text: str) -> dict[tuple[str, frozenset], float]:
    families = text_string_to_metric_families(text)
    return {
        (one.name, frozenset(one.labels.items())): one.value for family in families for one in family.samples
    }


def at(found: dict, name: str, **labels: str) -> float | None:
    return found.get((name, frozenset(labels.items())))


async def chat(gateway, model: str):
    return await gateway.http.post("/v1/chat/completions", json=CHAT | {"model": model})


async def unload(gateway, model: str, **fields: object):
    return await gateway.http.post("/v1/models/unload", json={"model_id": model} | fields)


def transition(old: State, new: State, *, model: str = "a", **fields: object) -> Transition:
    return Transition(id=model, old=old, new=new, **fields)


def stay(metrics: Metrics, *, model: str = "a", **departure: object) -> None:
    """A load and an unload as a catalog tells of them."""
    path = [State.DECLARED, State.LOADING, State.WARMING, State.READY, State.DRAINING, State.UNLOADING]
    for old, new in zip(path, [*path[1:], State.UNLOADED], strict=True):
        fields = departure if new is State.DRAINING else {}
        metrics.residency.changed(transition(old, new, model=model, **fields))


async def test_loads_are_counted_by_result_and_timed(workers):
    gateway = await workers(good={"load_secs": 0.05}, bad={"fail_load": "no"})
    for _ in range(2):
        assert (await chat(gateway, "good")).status_code == 200
        await unload(gateway, "good")
    assert (await chat(gateway, "bad")).status_code == 503
    found = await shown(gateway)
    assert at(found, "inferloom_model_loads_total", model="good", result="ready") == 2
    assert at(found, "inferloom_model_loads_total", model="bad", result="failed") == 2  # one retry at once
    assert at(found, "inferloom_model_load_seconds_count", model="good") == 2
    assert at(found, "inferloom_model_load_seconds_sum", model="good") >= 0.1
    assert at(found, "inferloom_model_load_seconds_bucket", model="good", le="0.05") == 0
    assert at(found, "inferloom_model_load_seconds_count", model="bad") is None


async def test_residency_goes_on_while_a_model_is_loaded_and_stops_when_it_is_not(workers):
    gateway = await workers(a={})
    await chat(gateway, "a")
    first = at(await shown(gateway), "inferloom_model_residency_seconds_total", model="a")
    await asyncio.sleep(0.02)
    second = at(await shown(gateway), "inferloom_model_residency_seconds_total", model="a")
    await unload(gateway, "a")
    third = at(await shown(gateway), "inferloom_model_residency_seconds_total", model="a")
    await asyncio.sleep(0.02)
    last = at(await shown(gateway), "inferloom_model_residency_seconds_total", model="a")
    assert first > 0
    assert first + 0.02 <= second < third == last


async def test_why_models_leave_memory_is_counted():
    metrics = Metrics(list)
    for cause in ("evicted", "evicted", "expired", None, "moon phase"):
        stay(metrics, cause=cause)
    metrics.residency.changed(transition(State.WARMING, State.READY))
    metrics.residency.changed(transition(State.READY, State.FAILED, reason="SIGKILL"))
    found = samples(metrics.text().decode())
    reasons = {"evicted": 2, "expired": 1, "asked": 1, "other": 1, "crashed": 1}
    for reason, count in reasons.items():
        assert at(found, "inferloom_model_evictions_total", model="a", reason=reason) == count


async def test_a_model_that_gives_way_is_counted_and_bytes_follow_who_is_there(workers):
    gateway = await workers(a={"weights_mb": 60, "kv_mb": 20}, b={"weights_mb": 60}, budget="100MiB")
    await chat(gateway, "a")
    found = await shown(gateway)
    assert at(found, "inferloom_model_bytes", model="a", kind="weights") == 60 << 20
    assert at(found, "inferloom_model_bytes", model="b", kind="weights") is None
    await chat(gateway, "b")
    found = await shown(gateway)
    assert at(found, "inferloom_model_evictions_total", model="a", reason="evicted") == 1
    assert at(found, "inferloom_model_bytes", model="a", kind="weights") is None
    assert at(found, "inferloom_model_bytes", model="b", kind="weights") == 60 << 20
    assert at(found, "inferloom_model_estimated_bytes", model="b") >= 60 << 20


async def test_what_a_model_takes_is_measured_and_the_estimates_error_shown(workers):
    gateway = await workers(a={"workspace_mb": 32})
    await chat(gateway, "a")
    await until(lambda: gateway.catalog.status("a").bytes.measured is not None)
    found = await shown(gateway)
    measured = at(found, "inferloom_model_measured_bytes", model="a")
    estimated = at(found, "inferloom_model_estimated_bytes", model="a")
    assert measured >= 32 << 20
    assert at(found, "inferloom_model_estimate_error_ratio", model="a") == pytest.approx(
        measured / estimated - 1
    )


async def test_a_load_that_nobody_waits_for_any_more_is_counted_as_stopped():
    metrics = Metrics(list)
    metrics.residency.changed(transition(State.UNLOADED, State.LOADING))
    metrics.residency.changed(transition(State.LOADING, State.UNLOADED))
    found = samples(metrics.text().decode())
    assert at(found, "inferloom_model_loads_total", model="a", result="stopped") == 1
    assert at(found, "inferloom_model_residency_seconds_total", model="a") is None


async def test_a_replaced_model_goes_on_being_resident():
    metrics = Metrics(list)
    metrics.residency.changed(transition(State.WARMING, State.READY, load_seconds=0.1))
    metrics.residency.changed(transition(State.READY, State.READY, load_seconds=0.2, cause="replaced"))
    found = samples(metrics.text().decode())
    assert at(found, "inferloom_model_loads_total", model="a", result="ready") == 2
    assert at(found, "inferloom_model_evictions_total", model="a", reason="replaced") == 1
    assert at(found, "inferloom_model_residency_seconds_total", model="a") > 0


async def test_a_crash_of_a_worker_is_a_departure(workers):
    import os
    import signal

    gateway = await workers(a={})
    await chat(gateway, "a")
    os.kill(gateway.catalog.status("a").pid, signal.SIGKILL)
    await until(lambda: gateway.catalog.status("a").loads == 2)
    found = await shown(gateway)
    assert at(found, "inferloom_model_evictions_total", model="a", reason="crashed") == 1
    assert at(found, "inferloom_model_loads_total", model="a", result="ready") == 2


async def test_the_wait_for_a_model_is_timed(workers):
    gateway = await workers(a={"load_secs": 0.2})
    for _ in range(2):
        await chat(gateway, "a")
    found = await shown(gateway)
    assert at(found, "inferloom_queue_wait_seconds_count", model="a") == 2
    assert at(found, "inferloom_queue_wait_seconds_sum", model="a") >= 0.2
    assert at(found, "inferloom_queue_wait_seconds_bucket", model="a", le="0.1") <= 1


async def test_bytes_are_shown_by_kind_beside_what_was_measured(gateway):
    gateway.catalog.default.status.bytes = ModelBytes(
        weights=600, kv=300, workspace=100, estimate=1000, expected=1000, measured=1040, error=0.04
    )
    found = await shown(gateway)
    assert at(found, "inferloom_model_bytes", model="talker", kind="weights") == 600
    assert at(found, "inferloom_model_bytes", model="talker", kind="kv") == 300
    assert at(found, "inferloom_model_bytes", model="talker", kind="workspace") == 100
    assert at(found, "inferloom_model_estimated_bytes", model="talker") == 1000
    assert at(found, "inferloom_model_measured_bytes", model="talker") == 1040
    assert at(found, "inferloom_model_estimate_error_ratio", model="talker") == pytest.approx(0.04)
    assert at(found, "inferloom_model_estimated_bytes", model="vectors") is None


async def test_what_was_not_measured_is_not_shown_as_nought(gateway):
    gateway.catalog.default.status.bytes = ModelBytes(weights=600, estimate=600)
    found = await shown(gateway)
    assert at(found, "inferloom_model_measured_bytes", model="talker") is None
    assert at(found, "inferloom_model_estimate_error_ratio", model="talker") is None


async def test_the_number_of_labels_is_bounded_however_many_models_there_were(monkeypatch):
    monkeypatch.setattr(metrics_module, "MOST_MODELS", 10)
    metrics = Metrics(list)
    for number in range(50):
        model = f"model-{number}"
        metrics.request(endpoint="/v1/chat/completions", status=200, model=model, seconds=0.1, error="x")
        metrics.waited(model, 0.1)
        metrics.cancelled(model)
        metrics.generation(model=model, usage=Usage(prompt_tokens=1), first_token=0.1, seconds=0.1)
        stay(metrics, model=model, cause="evicted")
    found = samples(metrics.text().decode())
    models = {dict(labels).get("model") for _, labels in found} - {None}
    assert len(models) == 11
    assert (
        at(
            found,
            "inferloom_http_requests_total",
            endpoint="/v1/chat/completions",
            status="200",
            model="other",
        )
        == 40
    )
    assert at(found, "inferloom_queue_wait_seconds_count", model="other") == 40
    assert at(found, "inferloom_model_evictions_total", model="other", reason="evicted") == 40
    assert sum(map(len, (metrics._request_children, metrics._wait_children, metrics._model_children))) == 30
