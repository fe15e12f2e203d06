"""Workers and gateways that are killed in the middle of their work."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from factories import gguf
from factories.server import Served, serving
from system.clients import change, streaming
from system.processes import Process, gateway_of, wait_until, worker_of

LONG = 4000  # tokens: what is killed in its midst has not finished


@pytest.fixture(scope="module")
def paths(checkpoints: Path, starter_cache: Path) -> Iterator[Served]:
    """Two checkpoints and a GGUF file, named by their paths, computed in float32."""
    gguf.write(checkpoints / "third.gguf")
    options = "activation_dtype=float32,max_batch_size=4,threads=1"
    flags = [f"{checkpoints / name},{options}" for name in ("first", "second", "third.gguf")]
    with serving("-m", flags[0], "-m", flags[1], "-m", flags[2]) as served:
        yield served


def tokens(served: Served, model: str, count: int) -> list[str]:
    with streaming(served, model, tokens=count, temperature=1.0, seed=5) as stream:
        stream.read()
    assert stream.error is None
    return stream.tokens


def test_checkpoints_and_a_gguf_file_are_served_by_their_paths_together(paths: Served) -> None:
    listed = [model["id"] for model in httpx.get(f"{paths.url}/v1/models").json()["data"]]
    assert listed[:3] == ["default", "first", "second"]
    assert listed[3].startswith("third")
    body = {"prompt": "The quick", "max_tokens": 5, "temperature": 0, "ignore_eos": True}
    for model, of in zip(listed[1:], ("safetensors", "safetensors", "gguf"), strict=True):
        answer = httpx.post(f"{paths.url}/v1/completions", json={**body, "model": model}, timeout=60).json()
        assert answer["usage"]["completion_tokens"] == 5
        assert httpx.get(f"{paths.url}/v1/models/{model}").json()["format"] == of


def test_a_killed_worker_fails_its_own_stream_and_nothing_else(paths: Served, checkpoints: Path) -> None:
    undisturbed = tokens(paths, "second", 300)
    assert len(undisturbed) == 300
    tokens(paths, "first", 5)
    gateway = gateway_of(paths)
    family, descriptors = len(gateway.children), gateway.descriptors
    worker = worker_of(paths, checkpoints / "first")
    with (
        streaming(paths, "first", tokens=LONG) as doomed,
        streaming(paths, "second", tokens=300, temperature=1.0, seed=5) as other,
    ):
        doomed.read(tokens=3)
        other.read(tokens=3)
        os.kill(worker.pid, signal.SIGKILL)
        doomed.read()
        other.read()
    assert doomed.error["type"] and "SIGKILL" in doomed.error["message"]
    assert len(doomed.tokens) < LONG
    assert (other.tokens, other.finish) == (undisturbed, "length")
    # the next request reloads
    assert len(tokens(paths, "first", 5)) == 5
    assert worker_of(paths, checkpoints / "first").pid != worker.pid
    # and nothing is left of the old one: no process, reaped or not, and no descriptor
    assert not worker.stat
    wait_until(lambda: gateway.descriptors <= descriptors)
    assert len(gateway.children) == family
    assert all(child.runs for child in gateway.children)


def test_a_killed_worker_is_loaded_again_even_by_name(paths: Served, checkpoints: Path) -> None:
    worker = worker_of(paths, checkpoints / "second")
    os.kill(worker.pid, signal.SIGKILL)
    wait_until(lambda: not worker.stat)
    assert change(paths, "load", "second")["status"] == "loaded"
    assert worker_of(paths, checkpoints / "second").runs


def test_a_signal_lets_a_real_stream_finish(checkpoints: Path) -> None:
    with (
        serving("-m", f"{checkpoints / 'first'},max_batch_size=4,threads=1") as served,
        streaming(served, "first", tokens=400) as stream,
    ):
        family = gateway_of(served).descendants
        stream.read(tokens=3)
        served.process.send_signal(signal.SIGTERM)
        stream.read()
        assert (len(stream.tokens), stream.finish, stream.error) == (400, "length", None)
        assert served.process.wait(20) == 0
        assert not any(process.runs for process in family)


def test_nothing_is_left_of_a_killed_gateway_within_a_second(checkpoints: Path) -> None:
    flags = [f"{checkpoints / name},max_batch_size=4,threads=1" for name in ("first", "second")]
    with serving("-m", flags[0], "-m", flags[1]) as served:
        family: list[Process] = gateway_of(served).descendants
        assert len(family) >= 3  # the forkserver and two workers
        with streaming(served, "first", tokens=LONG) as stream:
            stream.read(tokens=3)
            served.process.kill()
            deadline = time.monotonic() + 1.0
            while any(process.runs for process in family) and time.monotonic() < deadline:
                time.sleep(0.01)
            assert [process.pid for process in family if process.runs] == []
