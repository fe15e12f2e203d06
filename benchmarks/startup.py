"""How fast things start, and what they hold in memory, with the two starter models.

    python benchmarks/startup.py [--repeats 7]

`--help`; until the gateway listens and the models are ready (weights already fetched); unload → reload → first token
through HTTP; resident memory of the gateway, and of each worker by kind.
"""

from __future__ import annotations

import argparse
import http.client
import json
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from figures import Figures, machine, table
from processes import INFERLOOM, Server, descendants, free_port, memory, serving

MODELS = ("smollm2", "minilm")
CHAT = {
    "model": "smollm2",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "stream": True,
    "max_tokens": 1,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    print(f"{machine()}\n")
    rows = [["inferloom --help", milliseconds([help_seconds() for _ in range(repeats)])]]
    listen, ready = [], []
    for _ in range(repeats):
        with starters() as server:
            listen.append(server.seconds_to_listen)
            began = time.perf_counter()
            wait_until_loaded(server)
            ready.append(server.seconds_to_listen + time.perf_counter() - began)
    rows.append(["serve: until /health answers", milliseconds(listen)])
    rows.append(["serve: until both models are ready", milliseconds(ready)])
    with starters() as server:
        wait_until_loaded(server)
        first_token(server)
        rows.append(["first token, loaded", milliseconds([first_token(server) for _ in range(repeats)])])
        cycles = [reload_cycle(server) for _ in range(repeats)]
        for label, values in zip(
            ("unload", "reload", "then the first token", "all three"), zip(*cycles, strict=True), strict=True
        ):
            rows.append([f"smollm2, over HTTP: {label}", milliseconds(list(values))])
        automatic = [automatic_cycle(server) for _ in range(repeats)]
        rows.append(["unload, then a request that reloads: until its first token", milliseconds(automatic)])
        print(table(["what", "ms: median (quartiles)"], rows))
        print()
        print(memory_table(server))


def milliseconds(seconds: list[float]) -> str:
    return Figures([value * 1e3 for value in seconds]).text(0)


def help_seconds() -> float:
    began = time.perf_counter()
    command = Path(sys.executable).with_name("inferloom")
    subprocess.run([command, "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def starters() -> AbstractContextManager[Server]:
    """A server with the two starter models."""
    port = free_port()
    flags = [flag for model in MODELS for flag in ("-m", model)]
    return serving([*INFERLOOM, "serve", *flags, "--port", str(port)], port=port, health="/health")


def call(server: Server, path: str, payload: object) -> dict[str, object]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request("POST", path, json.dumps(payload), {"content-type": "application/json"})
    answer: dict[str, object] = json.load(connection.getresponse())
    connection.close()
    return answer


def wait_until_loaded(server: Server) -> None:
    while any(
        call(server, "/v1/models/status", {"model_id": model})["status"] != "loaded" for model in MODELS
    ):
        time.sleep(0.005)


def first_token(server: Server) -> float:
    """Seconds from the request until the first piece of text arrives."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    began = time.perf_counter()
    connection.request("POST", "/v1/chat/completions", json.dumps(CHAT), {"content-type": "application/json"})
    response = connection.getresponse()
    while line := response.readline():
        if line.startswith(b"data: {"):
            choices = json.loads(line[6:])["choices"]
            if choices and choices[0]["delta"].get("content"):
                seconds = time.perf_counter() - began
                response.read()
                connection.close()
                return seconds
    raise SystemExit("the answer had no text")


def reload_cycle(server: Server) -> tuple[float, float, float, float]:
    """Seconds of unload, reload, first token, and all of it."""
    began = time.perf_counter()
    call(server, "/v1/models/unload", {"model_id": "smollm2"})
    unloaded = time.perf_counter()
    call(server, "/v1/models/reload", {"model_id": "smollm2"})
    reloaded = time.perf_counter()
    first = first_token(server)
    return unloaded - began, reloaded - unloaded, first, time.perf_counter() - began


def automatic_cycle(server: Server) -> float:
    call(server, "/v1/models/unload", {"model_id": "smollm2"})
    return first_token(server)


def memory_table(server: Server) -> str:
    """Mebibytes of the gateway and its children, by kind."""
    rows = []
    processes = {"gateway": server.process.pid}
    processes |= {f"child {pid} ({name(pid)})": pid for pid in descendants(server.process.pid)}
    for label, pid in processes.items():
        sizes = {kind: size / 2**20 for kind, size in memory(pid).items()}
        rows.append([label, *(f"{size:.0f}" for size in sizes.values())])
    titles = ["resident", "proportional", "anonymous", "mapped files", "weights", "weights, private dirty"]
    return table(["process, MiB", *titles], rows)


def name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


if __name__ == "__main__":
    main()
