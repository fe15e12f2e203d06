"""Listing, showing and moving models, their tokenizers, and the server's own state."""

from __future__ import annotations

import openai
import pytest
from gateway.stand_in import ScriptedRunner, StandInCatalog, StandInEntry, chat_card, model, two_models

from inferloom.errors import LoadFailed, SourceNotFound


async def lifecycle(gateway, verb: str, **body):
    return await gateway.http.post(f"/v1/models/{verb}", json=body)


# --- listing --------------------------------------------------------------------------------------------------------


async def test_the_listing_begins_with_default_and_follows_the_configuration(gateway):
    body = (await gateway.http.get("/v1/models")).json()
    assert body["object"] == "list"
    assert [entry["id"] for entry in body["data"]] == ["default", "talker", "vectors"]
    default, talker, vectors = body["data"]
    assert default == {
        "id": "default",
        "object": "model",
        "created": 1_700_000_000,
        "owned_by": "local",
        "root": "talker",
    }
    assert (talker["status"], vectors["status"]) == ("loaded", "loaded")
    assert talker["aliases"] == ["chatty"]


async def test_the_official_client_lists_models(gateway):
    found = [entry.id async for entry in gateway.openai.models.list()]
    assert found == ["default", "talker", "vectors"]


async def test_a_model_named_default_is_listed_once(serve):
    entries = [StandInEntry(name, model(name), ScriptedRunner(chat_card())) for name in ("default", "other")]
    gateway = await serve(StandInCatalog(entries))
    data = (await gateway.http.get("/v1/models")).json()["data"]
    assert [(entry["id"], entry["status"]) for entry in data] == [("default", "loaded"), ("other", "loaded")]


@pytest.mark.parametrize("name", ["talker", "chatty", "default", "house/talker"])
async def test_a_model_is_shown_by_any_of_its_names(gateway, name):
    shown = (await gateway.http.get(f"/v1/models/{name}")).json()
    assert (shown["id"], shown["name"], shown["root"]) == (name, "talker", "house/talker")
    assert (shown["parameters"], shown["format"], shown["max_model_len"]) == (7, "dummy", 2048)
    assert (shown["status"], shown["state"], shown["default"]) == ("loaded", "ready", True)


async def test_the_official_client_shows_a_model_with_slashes(gateway):
    shown = await gateway.openai.models.retrieve("house/talker")
    assert (shown.id, shown.name, shown.format) == ("house/talker", "talker", "dummy")


async def test_the_system_prompt_of_a_model_is_shown(gateway):
    gateway.catalog.default.config.system_prompt = "Be brief."
    assert (await gateway.http.get("/v1/models/talker")).json()["system_prompt"] == "Be brief."


async def test_what_an_unloaded_model_does_not_know_is_null(gateway):
    status = gateway.catalog.default.status
    status.word, status.state, status.card = "unloaded", "declared", None
    shown = (await gateway.http.get("/v1/models/talker")).json()
    assert (shown["status"], shown["parameters"], shown["kind"]) == ("unloaded", None, None)


@pytest.mark.parametrize("name", ["nobody", "", "load", "a/b/c", "%00", "%ff"])
async def test_an_unknown_model_is_not_found(gateway, name):
    response = await gateway.http.get(f"/v1/models/{name}")
    assert response.status_code == 404
    error = response.json()["error"]
    assert error["code"] == "model_not_found"
    assert error["message"].startswith("model not found: ")
    assert ("GET /v1/models lists them" in error["message"]) == (name == "")


async def test_the_official_client_meets_not_found(gateway):
    with pytest.raises(openai.NotFoundError):
        await gateway.openai.models.retrieve("nobody")


# --- lifecycle ------------------------------------------------------------------------------------------------------


async def test_unload_reload_status_and_load(gateway):
    for verb, status, state in [
        ("status", "loaded", "ready"),
        ("unload", "unloaded", "unloaded"),
        ("status", "unloaded", "unloaded"),
        ("reload", "loaded", "ready"),
        ("unload", "unloaded", "unloaded"),
        ("load", "loaded", "ready"),
    ]:
        response = await lifecycle(gateway, verb, model_id="talker")
        assert response.status_code == 200
        body = response.json()
        assert body.pop("freed_bytes", 0) == 0  # nobody measured
        assert body == {"model_id": "talker", "status": status, "state": state}


@pytest.mark.parametrize("name", ["chatty", "house/talker", "default"])
async def test_the_name_is_echoed_as_it_was_sent(gateway, name):
    assert (await lifecycle(gateway, "status", model_id=name)).json()["model_id"] == name


async def test_the_stage_of_a_load_is_told(gateway):
    status = gateway.catalog.default.status
    status.word, status.state, status.stage, status.fraction = "reloading", "loading", "weights", 0.5
    body = (await lifecycle(gateway, "status", model_id="talker")).json()
    assert (body["status"], body["stage"], body["fraction"]) == ("reloading", "weights", 0.5)


async def test_force_is_passed_on(gateway):
    await lifecycle(gateway, "unload", model_id="talker", force=True)
    await lifecycle(gateway, "unload", model_id="talker")
    assert gateway.catalog.forced == [True, False]


@pytest.mark.parametrize("verb", ["load", "unload", "reload", "status"])
async def test_an_unknown_model_has_the_status_not_found(gateway, verb):
    response = await lifecycle(gateway, verb, model_id="nobody")
    assert response.status_code == 404
    body = response.json()
    assert (body["model_id"], body["status"]) == ("nobody", "not_found")
    assert body["error"]["code"] == "model_not_found"
    assert "model not found" in body["error"]["message"]


async def test_a_load_that_fails_says_why(gateway):
    gateway.catalog.default.load_error = LoadFailed("it broke", retry_after=2)
    response = await lifecycle(gateway, "reload", model_id="talker")
    body = response.json()
    assert (response.status_code, response.headers["retry-after"]) == (503, "2")
    assert (body["status"], body["state"], body["error"]["message"]) == (
        "internal_error",
        "failed",
        "it broke",
    )


async def test_a_source_that_is_gone_has_its_own_word(gateway):
    entry = gateway.catalog.default
    entry.load_error = SourceNotFound("the file is gone")
    body = (await lifecycle(gateway, "load", model_id="talker")).json()
    assert (body["status"], body["error"]["code"]) == ("no_loader_config", "source_not_found")


@pytest.mark.parametrize("body", [{}, {"model_id": 5}, {"model_id": None}])
async def test_a_lifecycle_call_needs_a_model_id(gateway, body):
    response = await lifecycle(gateway, "load", **body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "model_id"


async def test_a_source_never_comes_from_a_request(gateway):
    response = await lifecycle(gateway, "load", model_id="talker", source="/etc")
    assert response.headers["x-inferloom-ignored"] == "source"


# --- tokenizers -----------------------------------------------------------------------------------------------------


async def test_tokenize_and_detokenize(gateway):
    tokens = (await gateway.http.post("/tokenize", json={"model": "talker", "text": "ab"})).json()
    assert tokens == {"tokens": [1, 97, 98]}
    plain = {"model": "talker", "text": "ab", "add_special_tokens": False}
    assert (await gateway.http.post("/tokenize", json=plain)).json() == {"tokens": [97, 98]}
    text = (await gateway.http.post("/detokenize", json={"model": "talker", "tokens": [97, 98]})).json()
    assert text == {"text": "ab"}


@pytest.mark.parametrize(
    "path, body", [("/tokenize", {"text": 5}), ("/detokenize", {"tokens": [-1]}), ("/tokenize", {})]
)
async def test_wrong_tokenizer_requests_are_refused(gateway, path, body):
    assert (await gateway.http.post(path, json=body)).status_code == 400


# --- the server -----------------------------------------------------------------------------------------------------


async def test_health_is_the_process_and_ready_stays_when_a_model_is_unloaded(gateway):
    await lifecycle(gateway, "unload", model_id="talker")
    assert (await gateway.http.get("/health")).json()["status"] == "ok"
    ready = await gateway.http.get("/ready")
    assert ready.status_code == 200
    assert ready.json() == {"status": "ready", "models": {"talker": "unloaded", "vectors": "loaded"}}


async def test_a_server_is_not_ready_while_the_models_of_its_start_load(serve):
    catalog = two_models()
    talker, vectors = (entry.status for entry in catalog.entries())
    talker.state = vectors.state = "loading"
    gateway = await serve(catalog)
    assert (await gateway.http.get("/ready")).json()["status"] == "starting"
    talker.state, vectors.state = "ready", "failed"
    assert (await gateway.http.get("/ready")).status_code == 200
    talker.state = "loading"  # a later reload changes nothing
    assert (await gateway.http.get("/ready")).status_code == 200


async def test_a_draining_server_is_not_ready(gateway):
    gateway.service.draining = True
    assert (await gateway.http.get("/ready")).status_code == 503


async def test_metrics_are_labelled_by_model_and_bounded_for_unknown_names(gateway):
    await gateway.http.post("/v1/chat/completions", json={"messages": "x"})
    for name in ("a", "b"):
        await gateway.http.post("/v1/chat/completions", json={"messages": "x", "model": name})
    await gateway.http.post("/v1/embeddings", json={"input": "x", "model": "vectors"})
    text = (await gateway.http.get("/metrics")).text
    for line in (
        'inferloom_http_requests_total{endpoint="/v1/chat/completions",model="talker",status="200"} 1.0',
        'inferloom_http_requests_total{endpoint="/v1/chat/completions",model="unknown",status="404"} 2.0',
        'inferloom_generated_tokens_total{model="talker"} 7.0',
        'inferloom_prompt_tokens_total{model="talker"} 5.0',
        'inferloom_prompt_tokens_cached_total{model="talker"} 2.0',
        'inferloom_prompt_tokens_total{model="vectors"} 3.0',
        'inferloom_time_to_first_token_seconds_count{model="talker"} 1.0',
        'inferloom_model_loaded{model="talker"} 1.0',
        'inferloom_model_state{model="vectors",state="ready"} 1.0',
        'inferloom_errors_total{code="model_not_found",model="unknown"} 2.0',
        "inferloom_requests_in_flight 1.0",
    ):
        assert line in text.splitlines()
