"""What a server of several models owes its clients, M1 to M12, each through HTTP with workers that are processes.

| requirement | test |
|---|---|
| M1 no model, `default`, an alias, the canonical name | `test_a_model_is_found_by_every_name_it_has` |
| M2 the six status words and their HTTP codes | `test_every_status_word_has_its_meaning_and_code` |
| M3 a request to an unloaded model loads it | `test_lifecycle.test_an_unloaded_model_is_loaded_by_the_next_chat` |
| M4 a burst on an unloaded model is one load | `test_lifecycle.test_a_burst_on_an_unloaded_model_is_one_load` |
| M5 a reload of a loaded model changes nothing | `test_a_reload_of_a_loaded_model_leaves_no_ghost` |
| M6 an unload drains, or with `force` ends streams with an error | `test_lifecycle.test_unloading_waits_…`, `…_a_forced_unload_…` |
| M7 the default model outlives the unload of all | `test_the_default_model_outlives_the_unload_of_all` |
| M8 a load that fails | `test_a_load_that_fails_is_told_and_paced_and_harms_nobody` |
| M9 unload answers when the memory is back | `test_an_unload_answers_when_the_memory_is_back` |
| M10 two names of one checkpoint | `test_two_names_of_one_checkpoint_share_its_worker` |
| M11 the listing's order | `test_the_listing_keeps_the_order_of_the_configuration` |
| M12 a client that leaves ends its generation | `test_openai_client.test_closing_a_stream_stops_its_generation` |
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from factories.server import Served, serving
from system.clients import change
from system.processes import gateway_of, wait_until

from inferloom.worker.memory import pss

MIB = 1 << 20
LARGE = 200  # MiB
NAMES = ["zeta", "alpha", "large", "slow", "broken", "tiny", "gone", "polite"]


@pytest.fixture(scope="module")
def house(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Scripted models that answer with their names, two of a real checkpoint, and one whose files will vanish."""
    folder = tmp_path_factory.mktemp("house")
    shutil.copytree(checkpoints / "second", folder / "gone")
    native = 'driver = {type = "native", device = ["cpu"], options = {threads = 1}}'
    file = folder / "config.toml"
    file.write_text(f"""
        [server]
        default_model = "zeta"
        {scripted("zeta", aliases=["z"])}
        {scripted("alpha", aliases=["a", "house/alpha"])}
        {scripted("large", workspace_mb=LARGE)}
        {scripted("slow", load_secs=1.0)}
        {scripted("broken", fail_load="no luck today")}
        [[model]]
        name = "tiny"
        source = "{checkpoints / "first"}"
        lazy = true
        {native}
        [[model]]
        name = "gone"
        source = "{folder / "gone"}"
        lazy = true
        {native}
        [[model]]
        name = "polite"
        source = "{checkpoints / "first"}"
        system_prompt = "Be polite."
        lazy = true
        {native}
    """)
    with serving("--config", str(file), environment={"INFERLOOM_HOME": str(folder)}) as served:
        yield served


def scripted(name: str, *, aliases: list[str] | None = None, **options: object) -> str:
    given = {"text": name, **options}
    pairs = ", ".join(f"{key} = {value!r}" for key, value in given.items())
    return f"""
        [[model]]
        name = "{name}"
        aliases = {aliases or []}
        lazy = true
        driver = {{type = "dummy", device = ["cpu"], options = {{{pairs}}}}}
    """


def chat(served: Served, **fields: object) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 8, **fields}
    return httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=60)


def text(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def call(served: Served, verb: str, model: str, **fields: object) -> httpx.Response:
    return httpx.post(f"{served.url}/v1/models/{verb}", json={"model_id": model, **fields}, timeout=60)


def details(served: Served, model: str) -> Any:
    return httpx.get(f"{served.url}/v1/models/{model}").json()


def listing(served: Served) -> list[Any]:
    return list(httpx.get(f"{served.url}/v1/models").json()["data"])


def test_a_model_is_found_by_every_name_it_has(house: Served, checkpoints: Path) -> None:  # M1
    assert text(chat(house)) == "zeta"
    for name in ("default", "zeta", "z"):
        assert text(chat(house, model=name)) == "zeta"
    for name in ("alpha", "a", "house/alpha"):
        assert text(chat(house, model=name)) == "alpha"
    canonical = str(checkpoints / "first")
    answer = chat(house, model=canonical)
    assert (answer.status_code, answer.json()["model"]) == (200, canonical)
    assert details(house, "house/alpha")["name"] == "alpha"
    assert details(house, "default")["name"] == "zeta"


def test_every_status_word_has_its_meaning_and_code(house: Served, tmp_path: Path) -> None:  # M2
    def seen(model: str) -> tuple[int, str, str | None]:
        answer = call(house, "status", model)
        return answer.status_code, answer.json()["status"], answer.json().get("state")

    change(house, "load", "alpha")
    assert seen("alpha") == (200, "loaded", "ready")
    change(house, "unload", "alpha")
    assert seen("alpha") == (200, "unloaded", "unloaded")
    with ThreadPoolExecutor(1) as beside:
        loading = beside.submit(call, house, "load", "slow")
        wait_until(lambda: seen("slow")[1] == "reloading")
        assert seen("slow") == (200, "reloading", "loading")
        assert loading.result().json() == {"model_id": "slow", "status": "loaded", "state": "ready"}
    folder = Path(details(house, "gone")["root"])
    folder.rename(tmp_path / "elsewhere")
    assert seen("gone")[:2] == (200, "no_loader_config")
    asked = call(house, "load", "gone")
    assert asked.status_code >= 400 and asked.json()["status"] == "no_loader_config"
    (tmp_path / "elsewhere").rename(folder)
    change(house, "load", "gone")
    assert seen("gone") == (200, "loaded", "ready")
    asked = call(house, "load", "broken")
    assert asked.status_code >= 500 and asked.json()["status"] == "internal_error"
    assert seen("broken") == (200, "internal_error", "failed")
    assert seen("nobody")[:2] == (404, "not_found")
    assert call(house, "status", "nobody").json()["error"]["code"] == "model_not_found"


def test_a_reload_of_a_loaded_model_leaves_no_ghost(house: Served) -> None:  # M5
    change(house, "load", "alpha")
    before, rows, workers = details(house, "alpha"), listing(house), len(gateway_of(house).children)
    for _ in range(3):
        assert change(house, "reload", "alpha")["status"] == "loaded"
    assert listing(house) == rows
    assert len(gateway_of(house).children) == workers
    assert details(house, "alpha")["loads"] == before["loads"]
    change(house, "unload", "alpha")
    assert text(chat(house, model="alpha")) == "alpha"


def test_the_default_model_outlives_the_unload_of_all(house: Served) -> None:  # M7
    for name in NAMES:
        change(house, "unload", name)
    assert len(gateway_of(house).children) == 1  # the forkserver
    assert listing(house)[0] | {"created": 0} == {
        "id": "default", "object": "model", "created": 0, "owned_by": "local", "root": "zeta",
    }  # fmt: skip
    assert details(house, "default")["name"] == "zeta"
    assert text(chat(house)) == "zeta"
    assert details(house, "default")["status"] == "loaded"


def test_a_load_that_fails_is_told_and_paced_and_harms_nobody(house: Served) -> None:  # M8
    def tries() -> int:
        return house.output.count("broken: loading")

    change(house, "unload", "broken")  # whatever failed before is forgotten
    before = tries()
    first = chat(house, model="broken")
    assert first.status_code in (500, 503) and "no luck today" in first.json()["error"]["message"]
    wait_until(lambda: tries() == before + 2)  # the one retry at once
    shown = details(house, "broken")
    assert (shown["status"], shown["state"]) == ("internal_error", "failed")
    assert "no luck today" in shown["reason"] and 0 < shown["retry_after"] <= 1
    early = chat(house, model="broken")
    assert early.status_code == 503 and int(early.headers["retry-after"]) == 1
    assert "no luck today" in early.json()["error"]["message"]
    assert text(chat(house, model="alpha")) == "alpha"
    wait_until(lambda: details(house, "broken")["retry_after"] == 0)
    assert tries() == before + 2  # the early one was no try
    assert chat(house, model="broken").status_code in (500, 503)
    wait_until(lambda: tries() == before + 3)
    assert details(house, "broken")["retry_after"] > 1  # 2 s now


def test_an_unload_answers_when_the_memory_is_back(house: Served) -> None:  # M9
    def held() -> int:
        found = [pss(process.pid) for process in gateway_of(house).descendants]
        return sum(one.bytes for one in found if one is not None)

    change(house, "load", "large")  # once: what the first worker is forked from has come to be then
    change(house, "unload", "large")
    without = held()
    change(house, "load", "large")
    assert held() - without > LARGE * MIB
    wait_until(lambda: details(house, "large")["bytes"]["measured"] is not None)
    measured = details(house, "large")["bytes"]["measured"]
    assert measured > LARGE * MIB
    answer = change(house, "unload", "large")
    assert abs(held() - without) < 8 * MIB
    assert abs(answer["freed_bytes"] - measured) < 8 * MIB


def test_two_names_of_one_checkpoint_share_its_worker(house: Served) -> None:  # M10
    for name in NAMES:
        change(house, "unload", name)
    assert chat(house, model="tiny").status_code == 200
    workers = len(gateway_of(house).children)
    assert chat(house, model="polite").status_code == 200
    assert len(gateway_of(house).children) == workers
    assert (details(house, "tiny")["shares"], details(house, "polite")["shares"]) == (["polite"], ["tiny"])
    tokens = [chat(house, model=name).json()["usage"]["prompt_tokens"] for name in ("tiny", "polite")]
    assert tokens[0] < tokens[1]  # one has a system prompt of its own
    added = httpx.post(f"{house.url}/v1/models", json={"id": "third", "alias_of": "tiny"})
    assert added.status_code == 201, added.text
    assert chat(house, model="third").status_code == 200
    assert len(gateway_of(house).children) == workers
    assert httpx.delete(f"{house.url}/v1/models/third").status_code == 200
    assert httpx.delete(f"{house.url}/v1/models/third").status_code == 404
    assert details(house, "tiny")["status"] == "loaded"
    change(house, "unload", "polite")
    assert details(house, "tiny")["status"] == "unloaded"


def test_the_listing_keeps_the_order_of_the_configuration(house: Served) -> None:  # M11
    assert [row["id"] for row in listing(house)] == ["default", *NAMES]
    for name in ("polite", "zeta", "alpha"):
        change(house, "load", name)
    change(house, "unload", "zeta")
    assert [row["id"] for row in listing(house)] == ["default", *NAMES]
