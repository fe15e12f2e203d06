"""`GET /v1/events`: how the models are, then what happens to them."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from contextlib import asynccontextmanager
from itertools import pairwise

import httpx
import pytest
from factories.server import DUMMY, serving
from gateway.sse import Frame, Stream
from gateway.stand_in import until

from inferloom.catalog.events import Events
from inferloom.catalog.lifecycle import State, Transition
from inferloom.errors import ModelNotFound
from inferloom.gateway.exchange import Limits
from inferloom.types import LoadProgress


@asynccontextmanager
async def watching(gateway, query: str = "", **headers: str):
    async with gateway.http.stream("GET", f"/v1/events{query}", headers=headers) as response:
        assert response.status_code == 200, await response.aread()
        yield Stream(response)


async def load(gateway, model: str, verb: str = "load", **fields: object) -> httpx.Response:
    return await gateway.http.post(f"/v1/models/{verb}", json={"model_id": model} | fields)


def states(frames: list[Frame], model: str) -> list[str]:
    return [one.data["state"] for one in frames if one.event == "model" and one.data["id"] == model]


def change(new: State = State.READY, *, model: str = "a", **fields: object) -> Transition:
    return Transition(id=model, old=State.WARMING, new=new, **fields)


# --- over HTTP, with real workers -------------------------------------------------------------------------------------


async def test_the_first_event_is_a_snapshot_of_all_models(workers):
    gateway = await workers(a={}, b={})
    await load(gateway, "b")
    async with watching(gateway) as stream:
        assert stream.response.headers["content-type"].startswith("text/event-stream")
        first = await stream.next()
    assert first.event == "snapshot"
    shown = [(one["id"], one["status"], one["state"]) for one in first.data["models"]]
    assert shown == [("a", "unloaded", "declared"), ("b", "loaded", "ready")]
    now = time.time()
    assert all(now - 60 < one["since"] <= now + 1 for one in first.data["models"])


async def test_every_transition_is_told_as_it_happens(workers):
    gateway = await workers(a={})
    async with watching(gateway) as stream:
        await load(gateway, "a")
        loading = await stream.until(state="ready")
        await load(gateway, "a", "unload")
        leaving = await stream.until(state="unloaded")
    assert states(loading, "a") == ["loading", "warming", "ready"]
    assert states(leaving, "a") == ["draining", "unloading", "unloaded"]
    ready = loading[-1].data
    assert (ready["old"], ready["status"]) == ("warming", "loaded")
    assert ready["load_seconds"] > 0
    assert leaving[-1].data["status"] == "unloaded"
    times = [one.data["time"] for one in [*loading, *leaving]]
    assert times == sorted(times)


async def test_a_failed_load_is_told_with_its_reason(workers):
    gateway = await workers(a={"fail_load": "the disk is on fire"})
    async with watching(gateway) as stream:
        assert (await load(gateway, "a")).status_code == 503
        seen = await stream.until(state="failed")
    assert "the disk is on fire" in seen[-1].data["reason"]
    assert seen[-1].data["status"] == "internal_error"


async def test_a_model_that_makes_room_is_told_with_the_reason(workers):
    gateway = await workers(a={"weights_mb": 60}, b={"weights_mb": 60}, budget="100MiB")
    await load(gateway, "a")
    async with watching(gateway) as stream:
        await load(gateway, "b")
        seen = await stream.until(id="b", state="ready")
    (evicted,) = [one.data for one in seen if one.event == "evicted"]
    assert (evicted["id"], evicted["reason"]) == ("a", "to make room for b")
    assert states(seen, "a") == ["draining", "unloading", "unloaded"]
    assert {one.data["cause"] for one in seen if one.event == "model" and one.data["id"] == "a"} == {
        "evicted"
    }


async def test_a_model_that_was_idle_for_long_is_told(workers):
    gateway = await workers(a={}, server={"keep_alive": 0.05})
    async with watching(gateway) as stream:
        await gateway.http.post("/v1/chat/completions", json={"model": "a", "messages": "x"})
        seen = await stream.until(id="a", state="unloaded")
    assert [one.data["id"] for one in seen if one.event == "expired"] == ["a"]


async def test_the_progress_of_a_load_is_told_at_most_five_times_a_second(workers):
    gateway = await workers(a={"load_secs": 0.9})  # its worker reports fifty times a second
    async with watching(gateway) as stream:
        await load(gateway, "a")
        seen = await stream.until(state="ready")
    reports = [one.data for one in seen if one.event == "load_progress"]
    times = [one["time"] for one in reports]
    assert len(reports) >= 2
    assert all(later - sooner > 0.19 for sooner, later in pairwise(times))
    fractions = [one["fraction"] for one in reports if one["stage"] == "load"]
    assert fractions == sorted(fractions)
    assert all(0 <= fraction <= 1 for fraction in fractions)


async def test_model_restricts_the_stream_to_those_named(workers):
    gateway = await workers(a={}, b={}, c={})
    async with watching(gateway, "?model=b&model=c") as stream:
        for model in ("a", "c"):
            await load(gateway, model)
        seen = await stream.until(id="c", state="ready")
    assert [one["id"] for one in seen[0].data["models"]] == ["b", "c"]
    assert {one.data["id"] for one in seen[1:]} == {"c"}


async def test_default_names_a_model_to_watch(workers):
    gateway = await workers(a={}, b={})
    async with watching(gateway, "?model=default") as stream:
        assert [one["id"] for one in (await stream.next()).data["models"]] == ["a"]


@pytest.mark.parametrize(
    "query, status, param", [("?model=nobody", 404, "model"), ("?modle=a", 400, "modle"), ("?", 200, None)]
)
async def test_names_and_parameters_nobody_knows_are_refused(workers, query, status, param):
    gateway = await workers(a={})
    async with gateway.http.stream("GET", f"/v1/events{query}") as response:
        assert response.status_code == status
        if param is not None:
            await response.aread()
            assert response.json()["error"]["param"] == param


async def test_silence_is_filled_with_comments(workers):
    gateway = await workers(a={}, limits=Limits(sweep=0.01, comment_after=0.03))
    async with watching(gateway) as stream:
        await stream.next()
        assert [(await stream.next()).comment for _ in range(3)] == ["keep-alive"] * 3


async def test_comments_come_every_ten_seconds_unless_a_test_shortens_that():
    assert Limits().comment_after == 10.0


async def test_a_key_is_needed_where_the_server_has_keys(workers):
    gateway = await workers(a={}, server={"api_keys": ["secret"]})
    assert (await gateway.http.get("/v1/events")).status_code == 401
    async with watching(gateway, authorization="Bearer secret") as stream:
        assert (await stream.next()).event == "snapshot"


async def test_a_foreign_host_is_refused(workers):
    gateway = await workers(a={})
    assert (await gateway.http.get("/v1/events", headers={"host": "evil.example"})).status_code == 403


async def test_a_client_that_leaves_frees_everything(workers):
    gateway = await workers(a={})
    for _ in range(3):
        async with watching(gateway) as stream:
            await stream.next()
            assert len(gateway.service.events) == len(gateway.service.watchers) == 1
        await until(lambda: len(gateway.service.events) == len(gateway.service.watchers) == 0)
    await until(lambda: gateway.service.metrics.in_flight == 0)


async def test_many_watch_at_once_and_all_are_told(workers):
    gateway = await workers(a={})

    async def one() -> list[str]:
        async with watching(gateway) as stream:
            await stream.next()
            return states(await stream.until(state="ready"), "a")

    seen = [asyncio.create_task(one()) for _ in range(20)]
    await until(lambda: len(gateway.service.events) == 20)
    await load(gateway, "a")
    assert await asyncio.gather(*seen) == [["loading", "warming", "ready"]] * 20


async def test_the_stream_ends_when_the_server_does(workers):
    gateway = await workers(a={})
    async with watching(gateway) as stream:
        await stream.next()
        gateway.service.events.close()
        (last,) = await stream.rest()
    assert last.event == "shutdown"
    async with watching(gateway) as late:  # on a connection that was kept
        assert [one.event for one in await late.rest()] == ["snapshot", "shutdown"]


def test_a_server_that_ends_ends_the_stream_and_does_not_wait_for_it():
    with serving(*DUMMY) as served, httpx.Client(base_url=served.url, timeout=20) as client:
        served.wait_for("dummy ready")
        with client.stream("GET", "/v1/events") as response:
            lines = response.iter_lines()
            assert next(lines) == "event: snapshot"
            served.process.send_signal(signal.SIGTERM)
            assert "event: shutdown" in list(lines)
        begun = time.monotonic()
        assert served.process.wait(20) == 0
        assert time.monotonic() - begun < 15  # half of the time that answers in progress would have
        assert "0 requests in progress" in served.output


async def test_a_client_that_does_not_read_is_left_and_its_queue_was_bounded(workers):
    gateway = await workers(a={}, limits=Limits(sweep=0.01, stalled_after=0.2))
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", gateway.port))
    await asyncio.get_running_loop().sock_sendall(sock, b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
    events = gateway.service.events
    await until(lambda: len(events) == 1)
    told = 0
    while len(events):  # overflows the queue, or stalls for too long: either way it ends
        for _ in range(100):
            events.changed(change(reason="x" * 500))
        told += 100
        assert told < 200_000
        await asyncio.sleep(0)
    await until(lambda: len(gateway.service.watchers) == 0)
    sock.close()


async def test_asking_for_the_head_alone_ends(workers):
    gateway = await workers(a={})
    response = await gateway.http.head("/v1/events")
    assert (response.status_code, response.content) == (200, b"")
    assert len(gateway.service.events) == 0


# --- the hub ----------------------------------------------------------------------------------------------------------


async def test_a_slow_subscriber_is_dropped_and_the_others_go_on():
    events = Events(lambda id: "loaded", limit=3)
    slow, quick = events.subscribe(), events.subscribe()
    for _ in range(5):
        events.changed(change())
        assert len(await quick.take()) == 1
    assert len(events) == 1
    assert len(await slow.take()) == 3
    assert await slow.take() == []
    assert slow.overflowed and not quick.overflowed


async def test_an_overflowed_stream_says_so_last(workers):
    gateway = await workers(a={})
    async with watching(gateway) as stream:
        await stream.next()
        for _ in range(2000):  # in one turn of the loop, so that nothing is read between
            gateway.service.events.changed(change())
        seen = await stream.rest()
    assert len(seen) == 1024 + 1
    assert seen[-1].event == "overflow"
    assert "connect again" in seen[-1].data["message"]


async def test_what_made_a_model_leave_is_an_event_of_its_own():
    events = Events(lambda id: "loaded")
    everything = events.subscribe()
    for cause in ("evicted", "expired", None):
        events.changed(change(State.DRAINING, cause=cause, reason="room for b" if cause else None))
    told = [(event.name, event.reason) for event in await everything.take()]
    assert told == [
        ("evicted", "room for b"),
        ("model", "room for b"),
        ("expired", "room for b"),
        ("model", "room for b"),
        ("model", None),
    ]


async def test_a_model_that_was_removed_still_tells_how_it_leaves():
    def unknown(id: str) -> str:
        raise ModelNotFound(f"model not found: {id}")

    events = Events(unknown)
    everything = events.subscribe()
    events.configured("a", "removed")
    events.changed(change(State.UNLOADED))
    removed, left = await everything.take()
    assert (removed.name, removed.change) == ("config", "removed")
    assert (left.state, left.status) == ("unloaded", "unloaded")


async def test_the_last_report_before_a_silence_is_told():
    events = Events(lambda id: "reloading")
    everything = events.subscribe()
    for fraction in (0.1, 0.2, 0.3):
        events.progressed("a", LoadProgress("map", fraction))
    assert [event.fraction for event in await everything.take()] == [0.1]
    assert [event.fraction for event in await everything.take()] == [0.3]


async def test_a_report_that_waits_is_dropped_when_the_load_is_over():
    events = Events(lambda id: "loaded")
    everything = events.subscribe()
    events.progressed("a", LoadProgress("map", 0.1))
    events.progressed("a", LoadProgress("map", 0.2))
    events.changed(change())
    assert [event.name for event in await everything.take()] == ["load_progress", "model"]
    await until(lambda: not events._paces)
    events.progressed("a", LoadProgress("map", 0.3))
    assert [event.fraction for event in await everything.take()] == [0.3]
