"""The configuration's file is changed while the server runs: only what differs is touched."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from gateway.conftest import Gateway
from gateway.sse import Stream
from gateway.stand_in import config as configured
from gateway.stand_in import until

from inferloom.catalog.catalog import Catalog
from inferloom.config.file import ConfigFile
from inferloom.config.loading import load
from inferloom.gateway.configuration import Configuration
from inferloom.worker.pool import LIGHT, WorkerPool

SLOW = "one two three four five six seven eight"


def model(name: str, keys: str = "", **options: object) -> str:
    written = "".join(f"{key} = {json.dumps(value)}\n" for key, value in options.items())
    return (
        f'[[model]]\nname = "{name}"\nlazy = true\n{keys}\n[model.driver]\ntype = "dummy"\n'
        f"[model.driver.options]\n{written}"
    )


class FromFile:
    """A gateway over the models of a file."""

    def __init__(self, path: Path, gateway: Gateway, configuration: Configuration) -> None:
        self.path = path
        self.gateway = gateway
        self.configuration = configuration

    def write(self, *parts: str) -> None:
        self.path.write_text("\n".join(parts))

    async def post(self, verb: str, **options: object):
        return await self.gateway.http.post(f"/v1/config/{verb}", **(options or {"json": {}}))

    async def plan(self) -> list[tuple[str, str]]:
        return [(one["key"], one["effect"]) for one in (await self.post("plan")).json()["changes"]]

    async def apply(self) -> dict:
        response = await self.post("apply")
        assert response.status_code == 200, response.text
        return response.json()

    async def said(self, name: str) -> str:
        body = {"model": name, "messages": "x"}
        answer = (await self.gateway.http.post("/v1/chat/completions", json=body)).json()
        return answer["choices"][0]["message"]["content"] if "choices" in answer else answer["error"]["code"]

    async def ids(self) -> list[str]:
        return [one["id"] for one in (await self.gateway.http.get("/v1/models")).json()["data"]]

    def pid(self, name: str) -> int | None:
        return self.gateway.catalog.status(name).pid


Start = Callable[..., Awaitable[FromFile]]


@pytest.fixture
async def start(serve, tmp_path: Path) -> AsyncIterator[Start]:
    """`await start(text, …)`: serve what the text says."""
    pool = WorkerPool(preload=LIGHT)
    await pool.start()
    catalogs: list[Catalog] = []
    path = tmp_path / "config.toml"

    async def begin(*parts: str) -> FromFile:
        path.write_text("\n".join(parts))
        started = load(path)
        catalogs.append(Catalog(load(path), pool))
        server = {key: getattr(started.server, key) for key in started.server.__struct_fields__}
        gateway = await serve(catalogs[-1], **server)
        assert configured
        configuration = Configuration(gateway.service, ConfigFile(path, lambda: load(path)), started)
        gateway.service.configuration = configuration
        return FromFile(path, gateway, configuration)

    yield begin
    for catalog in catalogs:
        await catalog.close()
    await pool.stop()


async def test_a_plan_says_what_each_key_takes_and_changes_nothing(start):
    served = await start(model("a", text="old"), model("b"))
    assert await served.plan() == []
    served.write(
        "[server]\nport = 9999\nkeep_alive = '5m'",
        model("a", 'system_prompt = "Hi"', text="new"),
        model("c"),
    )
    assert await served.plan() == [
        ("server.port", "restart"),
        ("server.keep_alive", "now"),
        ("model.a.driver.options.text", "reload"),
        ("model.a.system_prompt", "now"),
        ("model.c", "added"),
        ("model.b", "removed"),
    ]
    assert await served.ids() == ["default", "a", "b"]
    assert await served.said("a") == "old"


async def test_one_model_changes_while_another_one_streams(start):
    slow = model("a", text=SLOW, tokens_per_second=20)
    served = await start(slow, model("b", text="old"))
    assert await served.said("b") == "old"
    stream = asyncio.create_task(served.said("a"))
    await until(lambda: served.gateway.catalog.status("a").leases == 1)
    before = served.pid("a"), served.pid("b")
    served.write(slow, model("b", text="new"))
    answer = await served.apply()
    assert [(one["key"], one["applied"]) for one in answer["changes"]] == [
        ("model.b.driver.options.text", True)
    ]
    assert not stream.done()
    assert (served.pid("a"), served.pid("b") == before[1]) == (before[0], False)
    assert await served.said("b") == "new"
    assert await stream == SLOW
    assert await served.plan() == []


async def test_models_come_go_and_change(start):
    served = await start(model("a", text="a"), model("b", text="b"))
    assert await served.said("b") == "b"
    served.write(model("a", 'aliases = ["x"]', text="a"), model("c", 'aliases = ["b"]', text="c"))
    await served.apply()
    assert await served.ids() == ["default", "a", "c"]
    assert [await served.said(name) for name in ("x", "c", "b")] == ["a", "c", "c"]


async def test_names_go_from_one_model_to_another(start):
    served = await start(model("a"), model("b", text="b"), model("c", 'aliases = ["x"]', text="c"))
    served.write(model("a"), model("b", 'aliases = ["x"]', text="b"), model("c", text="c"))
    assert (await served.apply())["failed"] == []
    assert await served.said("x") == "b"


async def test_the_default_model_may_go_with_its_file(start):
    served = await start(model("a", text="a"), model("b", text="b"))
    served.write(model("b", text="b"))
    assert (await served.apply())["failed"] == []
    assert await served.ids() == ["default", "b"]
    served.write(model("c", text="c"))
    assert (await served.apply())["failed"] == []
    assert await served.said("default") == "c"


async def test_a_wrong_file_changes_nothing_and_says_where_it_is_wrong(start, caplog):
    served = await start(model("a", text="old"))
    served.write("[server]\nkeep_alive = 1", model("a", "max_model_len = 0", text="new"))
    for verb in ("plan", "apply"):
        response = await served.post(verb)
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (400, "invalid_config")
        assert f"{served.path}:6: model.0.max_model_len" in error["message"]
    assert f"{served.path}:6" in caplog.text
    assert await served.said("a") == "old"
    assert (await served.gateway.http.get("/v1/models/a")).json()["keep_alive"] == -1


async def test_a_model_that_fails_is_what_it_was_and_the_others_are_changed(start):
    served = await start(model("a", text="a"), model("b", text="b"))
    assert [await served.said(name) for name in "ab"] == ["a", "b"]
    served.write(model("a", text="A"), model("b", text="B", fail_load="it broke"))
    answer = await served.apply()
    assert answer["failed"] == ["b"]
    assert {one["error"] for one in answer["changes"] if one["model"] == "b"} == {"it broke"}
    assert [await served.said(name) for name in "ab"] == ["A", "b"]
    assert {key for key, _ in await served.plan()} == {
        "model.b.driver.options.text",
        "model.b.driver.options.fail_load",
    }


async def test_what_takes_a_restart_stays_in_the_plan(start):
    served = await start(model("a"))
    served.write("[server]\nport = 9999\nkeep_alive = 60", model("a"))
    answer = await served.apply()
    assert answer["restart"] == ["server.port"]
    assert {one["key"]: one["applied"] for one in answer["changes"]} == {
        "server.port": False,
        "server.keep_alive": True,
    }
    assert await served.plan() == [("server.port", "restart")]


async def test_keys_of_the_server_hold_at_once(start):
    served = await start(model("a", workspace_mb=1))
    await served.said("a")
    server = "max_concurrent_requests = 7\nkeep_alive = 3600\nmax_loaded = 1\ndrain_timeout_secs = 1"
    served.write(f"[server]\n{server}\n[runtime]\nmemory_budget = '1GiB'", model("a", workspace_mb=1))
    await served.apply()
    service = served.gateway.service
    assert (service.admission.limit, service.config.server.drain_timeout_secs) == (7, 1)
    shown = (await served.gateway.http.get("/v1/models/a")).json()
    assert shown["keep_alive"] == 3600
    assert shown["expires_at"] is not None
    plan = await served.gateway.http.post("/v1/models/plan", json={"model_id": "a"})
    assert plan.json()["free_bytes"] < 1 << 30


async def test_other_keys_of_the_api_hold_at_once_and_are_not_told(start, caplog):
    served = await start('[server]\napi_keys = ["first"]', model("a"))
    headers = {"authorization": "Bearer first", "content-type": "application/json"}
    assert (await served.post("plan", json={})).status_code == 401
    served.write('[server]\napi_keys = ["second"]', model("a"))
    answer = await served.post("apply", headers=headers, content=b"{}")
    assert answer.status_code == 200
    assert "first" not in answer.text + caplog.text
    assert "second" not in answer.text + caplog.text
    assert (await served.post("plan", headers=headers, content=b"{}")).status_code == 401
    headers["authorization"] = "Bearer second"
    assert (await served.post("plan", headers=headers, content=b"{}")).status_code == 200


async def test_what_was_changed_over_http_stays_unless_the_file_says_otherwise(start):
    served = await start(model("a"), model("b"))
    http = served.gateway.http
    await http.post("/v1/models", json={"id": "c", "alias_of": "a"})
    await http.patch("/v1/models/a", json={"priority": 3, "system_prompt": "mine"})
    served.write(model("a", 'system_prompt = "the file\'s"'), model("b"))
    await served.apply()
    assert await served.ids() == ["default", "a", "b", "c"]
    shown = (await http.get("/v1/models/a")).json()
    assert (shown["priority"], shown["system_prompt"]) == (3, "the file's")


async def test_a_configuration_never_comes_from_a_request(start):
    served = await start(model("a"))
    response = await served.post("apply", json={"model": [{"name": "z"}]})
    assert response.status_code == 400
    assert (await served.post("apply", content=b"{}")).status_code == 415
    assert await served.ids() == ["default", "a"]


async def test_without_a_file_there_is_nothing_to_read_again(gateway):
    for verb in ("plan", "apply"):
        response = await gateway.http.post(f"/v1/config/{verb}", json={})
        assert (response.status_code, response.json()["error"]["code"]) == (409, "conflict")


async def test_a_watched_file_is_applied_when_it_was_written(start):
    served = await start(model("a", text="old"))
    watch = asyncio.create_task(served.configuration.watch(seconds=0.01))
    try:
        other = served.path.with_suffix(".new")
        other.write_text(model("a", text="new"))
        await asyncio.sleep(0.05)
        assert await served.said("a") == "old"
        other.replace(served.path)
        await until(lambda: served.gateway.catalog.config.model[0].driver.options["text"] == "new")
        served.path.write_text("nonsense")
        served.path.unlink()
        await asyncio.sleep(0.05)
        served.path.write_text(model("a", text="newer"))
        await until(lambda: served.gateway.catalog.config.model[0].driver.options["text"] == "newer")
        assert not watch.done()
    finally:
        watch.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watch


async def test_what_was_read_is_an_event(start):
    served = await start(model("a"))
    async with served.gateway.http.stream("GET", "/v1/events") as response:
        stream = Stream(response)
        await stream.next()
        served.write(model("a", "priority = 1"))
        await served.apply()
        served.write("nonsense")
        await served.post("apply")
        told = [frame.data for frame in await stream.until(change="refused") if "change" in frame.data]
    assert [(one["id"], one["change"]) for one in told] == [
        ("a", "changed"),
        ("", "applied"),
        ("", "refused"),
    ]
    assert ":1: not valid TOML" in told[-1]["message"]
