"""The serving process: its socket, its signals, its end. Real processes, real workers, the dummy driver."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from factories.server import Served, serving

CHAT = {"messages": [{"role": "user", "content": "x"}]}
SLOW = "one two three four five"


@pytest.fixture
def configured(tmp_path: Path):
    """Write a configuration of two dummies, `slow` at 20 tokens a second and `fast`; keys of `[server]` by name."""

    def write(**server: object) -> tuple[str, str]:
        keys = "\n".join(f"{key} = {json.dumps(value)}" for key, value in server.items())
        path = tmp_path / "config.toml"
        path.write_text(
            f"[server]\n{keys}\n"
            f'[[model]]\nname = "slow"\n[model.driver]\ntype = "dummy"\n[model.driver.options]\n'
            f'text = "{SLOW}"\ntokens_per_second = 20\n'
            '[[model]]\nname = "fast"\n[model.driver]\ntype = "dummy"\n'
        )
        return "--config", str(path)

    return write


@contextmanager
def stream(server: Served, **fields: object) -> Iterator[Iterator[str]]:
    """A stream that has begun: the lines after its first."""
    with (
        httpx.Client(timeout=30) as client,
        client.stream(
            "POST", f"{server.url}/v1/chat/completions", json=CHAT | {"stream": True} | fields
        ) as response,
    ):
        lines = response.iter_lines()
        assert '"role":"assistant"' in next(lines)
        yield lines


def refuses_connections(server: Served) -> bool:
    try:
        socket.create_connection(("127.0.0.1", server.port), timeout=5).close()
    except ConnectionError:
        return True
    return False


def wait_until(condition, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_listening_lets_streams_finish_and_exits_0(configured, number):
    with serving(*configured()) as server, stream(server) as lines:
        server.process.send_signal(number)
        wait_until(lambda: refuses_connections(server))
        rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        text = "".join(re.findall(r'"content":"([^"]*)"', "".join(rest)))
        assert text == SLOW
        assert server.process.wait(20) == 0
    assert "Traceback" not in server.output


def test_a_second_signal_ends_streams_with_an_error_and_exits_130(configured):
    with serving(*configured()) as server, stream(server) as lines:
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: refuses_connections(server))
        server.process.send_signal(signal.SIGINT)
        rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert json.loads(rest[-2].removeprefix("data: "))["error"]["code"] == "cancelled"
        assert server.process.wait(20) == 130
    assert "Traceback" not in server.output


def test_draining_has_a_limit_after_which_streams_end_with_an_error(configured):
    with serving(*configured(drain_timeout_secs=0.2)) as server, stream(server) as lines:
        server.process.send_signal(signal.SIGTERM)
        rest = [line for line in lines if line]
        assert '"code":"cancelled"' in rest[-2]
        assert server.process.wait(20) == 0


def test_an_idle_connection_does_not_keep_the_server_up(configured):
    with serving(*configured()) as server, httpx.Client() as client:
        assert client.get(f"{server.url}/health").status_code == 200
        idle = socket.create_connection(("127.0.0.1", server.port))
        assert server.stop(seconds=10) == 0
        idle.close()


def test_nothing_is_left_of_a_server_that_ended(configured):
    with serving(*configured()) as server:
        children = [path for path in Path("/proc").iterdir() if _parent(path) == server.process.pid]
        assert children
        assert server.stop() == 0
        wait_until(lambda: not any(path.exists() for path in children))


def _parent(process: Path) -> int:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return 0


def test_a_port_in_use_is_one_sentence_and_exit_2(configured):
    _, path = configured()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "inferloom", "serve", "--config", path, "--port", str(port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert re.fullmatch(rf"error: port {port} on 127.0.0.1 is in use: [^\n]*\n", done.stderr)


def test_listening_beyond_loopback_without_keys_is_refused_with_exit_2(configured):
    environment = {"INFERLOOM_API_KEYS": ""}
    with serving(*configured(host="0.0.0.0"), ready=False, environment=environment) as server:
        assert server.process.wait(20) == 2
        server.wait_for("--insecure", seconds=5)


def test_keys_of_the_environment_are_asked_for_and_never_logged(configured):
    environment = {"INFERLOOM_API_KEYS": "sk-secret"}
    with serving(*configured(access_log=True, log_level="debug"), environment=environment) as server:
        url = f"{server.url}/v1/chat/completions"
        chat = {"model": "fast", "messages": [{"role": "user", "content": "a private question"}]}
        assert httpx.post(url, json=chat).status_code == 401
        headers = {"authorization": "Bearer sk-secret", "x-request-id": "mine"}
        assert httpx.post(url, json=chat, headers=headers).status_code == 200
        server.wait_for('"request_id":"mine"')  # readiness is asked for, and logged, too
        lines = [json.loads(line) for line in server.output.splitlines() if line.startswith("{")]
    assert "sk-secret" not in server.output
    assert "private" not in server.output
    entry = next(line for line in lines if line.get("request_id") == "mine")
    assert (entry["model"], entry["path"], entry["method"]) == ("fast", "/v1/chat/completions", "POST")


def test_a_forced_unload_ends_streams_with_an_error_and_the_next_request_reloads(configured):
    with serving(*configured()) as server, stream(server, model="slow") as lines:
        body = {"model_id": "slow", "force": True}
        answer = httpx.post(f"{server.url}/v1/models/unload", json=body, timeout=10).json()
        assert answer.pop("freed_bytes") > 0
        assert answer == {"model_id": "slow", "status": "unloaded", "state": "unloaded"}
        rest = [line for line in lines if line]
        assert '"code":"cancelled"' in rest[-2]
        assert rest[-1] == "data: [DONE]"
        assert httpx.get(f"{server.url}/ready").status_code == 200
        again = httpx.post(f"{server.url}/v1/chat/completions", json=CHAT | {"model": "slow"}, timeout=20)
        assert again.json()["choices"][0]["message"]["content"] == SLOW
