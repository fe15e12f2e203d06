"""Models are added, changed and removed while the server runs: over HTTP, with workers that are processes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest
from factories.checkpoints import make_checkpoint
from gateway.asking import ask, said, shown
from gateway.sse import Stream
from gateway.stand_in import until

from inferloom.config.schema import ModelConfig
from inferloom.gateway.wire.changes import ModelOptions

SLOW = {"tokens_per_second": 20, "text": "one two three four five six seven eight"}


@pytest.fixture
def source(tmp_path: Path) -> str:
    make_checkpoint(tmp_path / "tiny", "llama")
    return str(tmp_path / "tiny")


async def add(gateway, **body):
    return await gateway.http.post("/v1/models", json=body)


async def patch(gateway, name: str, **body):
    return await gateway.http.patch(f"/v1/models/{name}", json=body)


async def delete(gateway, name: str, **query):
    return await gateway.http.delete(f"/v1/models/{name}", params=query)


async def ids(gateway) -> list[str]:
    return [one["id"] for one in (await gateway.http.get("/v1/models")).json()["data"]]


def pids(gateway) -> list[int]:
    return [gateway.catalog.status(entry.id).pid for entry in gateway.catalog.entries()]


# --- adding ---------------------------------------------------------------------------------------------------------


async def test_an_alias_of_a_declared_model_is_a_model_of_its_own_name(workers):
    gateway = await workers(a={"text": "I am a."}, b={})
    response = await add(gateway, id="c", alias_of="a", system_prompt="You are c.", keep_alive="5m")
    body = response.json()
    assert (response.status_code, body["id"], body["persisted"]) == (201, "c", False)
    assert (body["system_prompt"], body["keep_alive"], body["state"]) == ("You are c.", 300, "declared")
    assert await said(gateway, "c") == "I am a."
    assert await ids(gateway) == ["default", "a", "b", "c"]
    assert (await shown(gateway, "a"))["system_prompt"] is None


async def test_two_names_of_one_checkpoint_share_a_worker(workers, source):
    gateway = await workers(server={"allow_model_changes": True}, other={})
    await add(gateway, id="a", source=source, driver={"type": "dummy"})
    assert await said(gateway, "a")
    body = (await add(gateway, id="b", alias_of="a", system_prompt="You are b.")).json()
    assert (body["state"], body["shares"]) == ("ready", ["a"])
    assert await said(gateway, "b")
    _, first, second = pids(gateway)
    assert first == second is not None
    removed = (await delete(gateway, "a")).json()
    assert (removed["deleted"], removed["freed_bytes"]) == (True, 0)
    assert pids(gateway) == [None, second]


async def test_nothing_is_loaded_by_adding_unless_it_is_asked_for(workers):
    gateway = await workers(a={})
    await add(gateway, id="b", alias_of="a")
    await add(gateway, id="c", alias_of="a", lazy=False)
    await until(lambda: gateway.catalog.status("c").state == "ready")
    assert gateway.catalog.status("b").state == "declared"


@pytest.mark.parametrize(
    "source, says",
    [
        ("/nowhere/at/all", "there is no file or folder"),
        ("./nowhere", "there is no file or folder"),
        ("smollm3000", "neither an existing path"),
        ("a/b/c/d", "neither an existing path"),
        ("pypi:something", "an exact version"),
        ("Qwen/Qwen3-0.6B@..", "not a revision"),
        ("", "names no model"),
    ],
)
@pytest.mark.parametrize("key", ["source", "tok_model_id"])
async def test_a_source_that_cannot_be_is_refused_at_once(workers, source, says, key):
    gateway = await workers(server={"allow_model_changes": True}, a={})
    given = {"source": "smollm2", "driver": {"type": "dummy"}} | {key: source}
    for response in (await add(gateway, id="b", **given), await patch(gateway, "a", **{key: source})):
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, key)
        assert says in error["message"]
    assert await ids(gateway) == ["default", "a"]


async def test_a_source_on_the_hub_need_not_be_fetched_yet(workers):
    gateway = await workers(server={"allow_model_changes": True}, a={})
    response = await add(gateway, id="b", source="somebody/some-model@main")
    assert (response.status_code, response.json()["state"]) == (201, "declared")


@pytest.mark.parametrize("key", ["source", "hf_repo"])
async def test_a_source_comes_from_the_operator(workers, source, key):
    gateway = await workers(a={})
    response = await add(gateway, id="b", **{key: source})
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (403, "forbidden")
    assert f"`{key}`" in error["message"]
    assert "allow_model_changes" in error["message"]
    assert await ids(gateway) == ["default", "a"]


@pytest.mark.parametrize(
    "options, key",
    [
        ({"chat_template": "/etc/passwd"}, "chat_template"),
        ({"jinja_explicit": "x"}, "jinja_explicit"),
        ({"tok_model_id": "x/y"}, "tok_model_id"),
        ({"trust_remote_code": True}, "trust_remote_code"),
        ({"driver": {"device": ["cuda:0"]}}, "driver.device"),
        ({"driver": {"type": "native"}}, "driver.type"),
        ({"source": None}, "source"),
    ],
)
async def test_what_reads_files_runs_code_or_takes_devices_is_the_operators(workers, options, key):
    gateway = await workers(a={})
    for response in (
        await add(gateway, id="b", alias_of="a", **options),
        await patch(gateway, "a", **options),
    ):
        assert response.status_code == 403
        assert f"`{key}`" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "body, status, param",
    [
        ({"id": "b"}, 400, "alias_of"),
        ({"id": "b", "alias_of": "nobody"}, 404, "alias_of"),
        ({"id": "a", "alias_of": "a"}, 409, "id"),
        ({"id": "b b", "alias_of": "a"}, 400, "id"),
        ({"id": "load", "alias_of": "a"}, 400, "id"),
        ({"id": "b", "alias_of": "a", "aliases": ["a"]}, 400, "aliases.0"),
        ({"id": "b", "alias_of": "a", "max_model_len": 0}, 400, "max_model_len"),
        ({"id": "b", "alias_of": "a", "keep_alive": "soon"}, 400, "keep_alive"),
        ({"id": "b", "alias_of": "a", "colour": "red"}, 400, "colour"),
        ({"id": "b", "alias_of": "a", "driver": {"options": {"colour": 1}}}, 400, "driver.options.colour"),
        ({"id": "b", "alias_of": "a", "scheduler": {"batch_policy": "x"}}, 400, "scheduler.batch_policy"),
        ({"alias_of": "a"}, 400, "id"),
    ],
)
async def test_a_model_that_cannot_be_is_refused_and_nothing_has_changed(workers, body, status, param):
    gateway = await workers(a={})
    response = await add(gateway, **body)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)
    assert await ids(gateway) == ["default", "a"]


# --- changing -------------------------------------------------------------------------------------------------------


async def test_what_belongs_to_the_name_changes_at_once(workers):
    gateway = await workers(a={})
    await said(gateway, "a")
    before = pids(gateway)
    body = (
        await patch(gateway, "a", system_prompt="Be brief.", keep_alive=60, aliases=["x"], priority=3)
    ).json()
    assert (body["system_prompt"], body["keep_alive"], body["aliases"]) == ("Be brief.", 60, ["x"])
    assert (body["priority"], body["persisted"]) == (3, False)
    assert (await shown(gateway, "x"))["name"] == "a"
    assert pids(gateway) == before
    body = (await patch(gateway, "a", system_prompt=None, aliases=[])).json()
    assert (body["system_prompt"], body["aliases"], body["keep_alive"]) == (None, [], 60)
    assert (await ask(gateway, "x")).status_code == 404


async def test_what_the_worker_depends_on_replaces_it_while_others_go_on(workers):
    gateway = await workers(a=SLOW, b={"text": "old"})
    assert await said(gateway, "b") == "old"
    stream = asyncio.create_task(said(gateway, "a"))
    await until(lambda: gateway.catalog.status("a").leases == 1)
    first, second = pids(gateway)
    response = await patch(gateway, "b", driver={"options": {"text": "new"}}, aliases=["bee"])
    assert response.status_code == 200
    assert await said(gateway, "bee") == "new"
    assert pids(gateway)[0] == first
    assert pids(gateway)[1] not in (second, None)
    assert await stream == SLOW["text"]
    assert await ids(gateway) == ["default", "a", "b"]


async def test_a_change_that_fails_leaves_the_model_as_it_was(workers):
    gateway = await workers(a={"text": "old"})
    assert await said(gateway, "a") == "old"
    before = pids(gateway)
    options = {"text": "new", "fail_load": "it broke"}
    response = await patch(gateway, "a", driver={"options": options}, aliases=["x"])
    assert (response.status_code, response.json()["error"]["code"]) == (503, "model_load_failed")
    assert (await said(gateway, "a"), pids(gateway)) == ("old", before)
    assert (await ask(gateway, "x")).status_code == 404


async def test_an_unloaded_model_is_changed_without_being_loaded(workers):
    gateway = await workers(a={"text": "old"})
    await patch(gateway, "a", driver={"options": {"text": "new"}})
    assert gateway.catalog.status("a").state == "declared"
    assert await said(gateway, "a") == "new"


async def test_a_change_to_nothing_changes_nothing(workers):
    gateway = await workers(a={})
    response = await patch(gateway, "a")
    assert (response.status_code, response.json()["state"]) == (200, "declared")


async def test_a_name_that_is_taken_is_refused(workers):
    gateway = await workers(a={}, b={})
    response = await patch(gateway, "a", aliases=["b"])
    assert (response.status_code, response.json()["error"]["param"]) == (400, "aliases")


# --- removing -------------------------------------------------------------------------------------------------------


async def test_a_model_that_is_deleted_is_gone_once(workers):
    gateway = await workers(a={}, b={})
    body = (await delete(gateway, "b")).json()
    assert body == {"id": "b", "object": "model", "deleted": True, "freed_bytes": 0, "persisted": False}
    assert (await delete(gateway, "b")).status_code == 404
    assert (await ask(gateway, "b")).status_code == 404
    assert await ids(gateway) == ["default", "a"]


async def test_the_default_model_stays(workers):
    gateway = await workers(a={}, b={})
    for name in ("a", "default"):
        response = await delete(gateway, name)
        assert (response.status_code, response.json()["error"]["code"]) == (409, "conflict")
    await gateway.http.put("/v1/models/default", json={"model_id": "b"})
    assert (await delete(gateway, "a")).status_code == 200
    assert await ids(gateway) == ["default", "b"]


async def test_an_alias_is_not_what_is_deleted(workers):
    gateway = await workers(a={}, b={})
    await patch(gateway, "b", aliases=["x"])
    response = await delete(gateway, "x")
    assert response.status_code == 409
    assert "'b'" in response.json()["error"]["message"]


async def test_a_loaded_model_is_drained(workers):
    gateway = await workers(a={}, b=SLOW)
    stream = asyncio.create_task(said(gateway, "b"))
    await until(lambda: gateway.catalog.status("b").leases == 1)
    removal = asyncio.create_task(delete(gateway, "b"))
    await until(lambda: len(gateway.catalog.entries()) == 1)
    assert (await ask(gateway, "b")).status_code == 404
    assert await stream == SLOW["text"]
    removed = await removal
    assert removed.json()["freed_bytes"] > 1 << 20
    assert gateway.catalog.ledger.held() == []


async def test_force_ends_what_is_in_progress(workers):
    gateway = await workers(a={}, b={**SLOW, "tokens_per_second": 1})
    stream = asyncio.create_task(ask(gateway, "b"))
    await until(lambda: gateway.catalog.status("b").leases == 1)
    assert (await delete(gateway, "b", force="true")).status_code == 200
    assert (await stream).json()["error"]["code"] == "cancelled"
    assert (await delete(gateway, "a", force="perhaps")).status_code == 400


async def test_whoever_waits_for_a_model_that_is_deleted_is_told(workers):
    gateway = await workers(a={}, b={"load_secs": 30})
    waiting = asyncio.create_task(ask(gateway, "b"))
    await until(lambda: gateway.catalog.status("b").waiting == 1)
    assert (await delete(gateway, "b")).status_code == 200
    response = await waiting
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")


async def test_two_that_delete_at_once_are_one_deletion(workers):
    gateway = await workers(a={}, b={})
    await said(gateway, "b")
    found = await asyncio.gather(*(delete(gateway, "b") for _ in range(4)))
    assert sorted(response.status_code for response in found) == [200, 404, 404, 404]


async def test_a_name_can_be_given_again(workers):
    gateway = await workers(a={"text": "of a"}, b={"text": "of b"})
    for text in ("first", "second"):
        await add(gateway, id="c", alias_of="b", driver={"options": {"text": text}})
        assert await said(gateway, "c") == text
        assert (await delete(gateway, "c")).status_code == 200
    assert gateway.catalog.ledger.held() == []
    assert len(gateway.catalog.residences()) == 2


async def test_the_names_of_models_that_come_and_go_are_bounded_labels(workers, monkeypatch):
    monkeypatch.setattr("inferloom.gateway.metrics.MOST_MODELS", 3)
    gateway = await workers(a={})
    for number in range(6):
        await add(gateway, id=f"m{number}", alias_of="a")
        await said(gateway, f"m{number}")
        await delete(gateway, f"m{number}")
    text = (await gateway.http.get("/metrics")).text
    labelled = {line.split('model="')[1].split('"')[0] for line in text.splitlines() if 'model="' in line}
    assert {"m0", "m1"} <= labelled
    assert not {"m3", "m4", "m5"} & labelled


async def test_what_is_declared_changed_and_removed_is_told_as_it_happens(workers):
    gateway = await workers(a={})
    async with gateway.http.stream("GET", "/v1/events") as response:
        stream = Stream(response)
        await stream.next()
        await add(gateway, id="b", alias_of="a")
        await patch(gateway, "b", priority=1)
        await delete(gateway, "b")
        seen = await stream.until(id="b", change="removed")
    told = [(frame.data["id"], frame.data["change"]) for frame in seen if "change" in frame.data]
    assert told == [("b", "added"), ("b", "changed"), ("b", "removed")]


def test_every_key_of_a_model_is_an_option():
    options = {field.name for field in msgspec.structs.fields(ModelOptions)}
    assert options == set(ModelConfig.__struct_fields__) - {"name"}
