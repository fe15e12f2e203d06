"""Unloading and reloading real models through HTTP."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
from factories.server import Served
from system.clients import change, streaming
from system.processes import gateway_of, wait_until

from inferloom.formats.checkpoint import Checkpoint

CHAT = {
    "model": "smollm2",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "temperature": 0,
}


def ask(served: Served) -> httpx.Response:
    return httpx.post(f"{served.url}/v1/chat/completions", json=CHAT, timeout=100)


def loads(served: Served) -> int:
    return served.printed.count("smollm2 ready in ")


def test_an_unloaded_model_is_loaded_by_the_next_chat(starters: Served) -> None:
    workers = len(gateway_of(starters).children)
    unloaded = change(starters, "unload", "smollm2")
    assert (unloaded["status"], unloaded["state"]) == ("unloaded", "unloaded")
    assert unloaded["freed_bytes"] > 20 << 20  # a proportional size: other servers may map the same weights
    # it is said only after the process is gone
    assert len(gateway_of(starters).children) == workers - 1
    assert change(starters, "status", "smollm2")["status"] == "unloaded"
    assert "Paris" in ask(starters).json()["choices"][0]["message"]["content"]
    assert change(starters, "status", "smollm2")["status"] == "loaded"
    assert len(gateway_of(starters).children) == workers


def test_a_burst_on_an_unloaded_model_is_one_load(starters: Served) -> None:
    change(starters, "unload", "smollm2")
    before = loads(starters)
    with ThreadPoolExecutor(20) as burst:
        answers = list(burst.map(lambda _: ask(starters), range(20)))
    assert [answer.status_code for answer in answers] == [200] * 20
    assert all("Paris" in answer.json()["choices"][0]["message"]["content"] for answer in answers)
    wait_until(lambda: loads(starters) > before)
    assert loads(starters) == before + 1


def test_unloading_waits_for_a_stream_that_runs(starters: Served) -> None:
    with ThreadPoolExecutor(1) as beside, streaming(starters, "smollm2", tokens=40) as stream:
        stream.read(tokens=1)
        unloading = beside.submit(change, starters, "unload", "smollm2")
        stream.read()
        assert (len(stream.tokens), stream.finish, stream.error) == (40, "length", None)
        assert unloading.result()["state"] == "unloaded"


def test_a_forced_unload_ends_a_stream_with_an_error(starters: Served) -> None:
    with streaming(starters, "smollm2", tokens=4000) as stream:
        stream.read(tokens=1)
        assert change(starters, "unload", "smollm2", force=True)["state"] == "unloaded"
        stream.read()
    assert stream.error["code"] == "cancelled"
    assert "unload" in stream.error["message"]
    assert len(stream.tokens) < 4000


def test_reloading_is_idempotent(starters: Served) -> None:
    workers = len(gateway_of(starters).children)
    for _ in range(2):
        assert change(starters, "reload", "smollm2")["status"] == "loaded"
    assert change(starters, "status", "smollm2")["state"] == "ready"
    assert len(gateway_of(starters).children) in (workers, workers + 1)  # it was unloaded before, or not


@pytest.mark.parametrize("model", ["smollm2", "minilm"])
def test_the_weights_of_a_worker_are_file_backed(
    starters: Served,
    client: openai.OpenAI,
    model: str,
    smollm2_checkpoint: Checkpoint,
    minilm_checkpoint: Checkpoint,
) -> None:
    client.embeddings.create(model="minilm", input="x")
    assert ask(starters).status_code == 200
    (weights,) = {"smollm2": smollm2_checkpoint, "minilm": minilm_checkpoint}[model].weights
    # the float32 copy of the chat starter has read the same file
    workers = [child for child in gateway_of(starters).children if child.maps(Path(weights))]
    mappings = [worker.mapping(weights) for worker in workers]
    assert mappings
    # of the embedding of all words, those that were said
    assert all(mapping["Rss"] > mapping["Size"] / 3 for mapping in mappings)
    assert all(mapping["Private_Dirty"] < 0.05 * mapping["Size"] for mapping in mappings)
