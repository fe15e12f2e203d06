"""Many swaps of two models under request load: does anything get lost, and does anything grow?

    python benchmarks/soak.py [--swaps 200] [--clients 2] [--model smollm2]

Two copies of one model are unloaded and loaded by turns while clients ask both of them. Exit status 1 if a request was
lost, or if the gateway holds more descriptors or children at the end than at the beginning.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import threading
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from figures import Figures, machine, table
from processes import INFERLOOM, Server, descendants, free_port, memory, serving
from startup import call

NAMES = ("first", "second")
TOKENS = 4


class Client(threading.Thread):
    """Asks one model again and again, whole and streamed by turns. `faults`: what was not a complete answer."""

    def __init__(self, port: int, name: str) -> None:
        super().__init__(daemon=True)
        self.answers = 0
        self.longest = 0.0  # seconds
        self.faults: Counter[str] = Counter()
        self.over = threading.Event()
        self._port = port
        self._model = name

    def run(self) -> None:
        while not self.over.is_set():
            began = time.perf_counter()
            fault = self._ask(stream=self.answers % 2 == 1)
            self.longest = max(self.longest, time.perf_counter() - began)
            self.answers += 1
            if fault:
                self.faults[fault] += 1

    def _ask(self, *, stream: bool) -> str:
        body = {
            "model": self._model,
            "prompt": "x",
            "max_tokens": TOKENS,
            "ignore_eos": True,
            "stream": stream,
        }
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)
        try:
            connection.request(
                "POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"}
            )
            response = connection.getresponse()
            text = response.read().decode()
        except (OSError, http.client.HTTPException) as error:
            return type(error).__name__
        finally:
            connection.close()
        if response.status != 200:
            return f"status {response.status}: {text[:200]}"
        if stream:
            return "" if text.endswith("data: [DONE]\n\n") and '"error"' not in text else "a broken stream"
        return "" if json.loads(text)["usage"]["completion_tokens"] == TOKENS else "a short answer"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--swaps", type=int, default=200)
    parser.add_argument("--clients", type=int, default=2, help="of each model")
    parser.add_argument("--model", default="smollm2")
    arguments = parser.parse_args()
    print(f"{machine()}\n")
    port = free_port()
    flags = [flag for name in NAMES for flag in ("-m", f"{arguments.model},name={name},threads=1")]
    with serving([*INFERLOOM, "serve", *flags, "--port", str(port)], port=port, health="/health") as server:
        sys.exit(soak(server, swaps=arguments.swaps, clients=arguments.clients))


def soak(server: Server, *, swaps: int, clients: int) -> int:
    """Prints what was seen; the exit status."""
    for name in NAMES:
        call(server, "/v1/models/load", {"model_id": name})
    before = settled(server)
    asking = [Client(server.port, name) for name in NAMES for _ in range(clients)]
    for client in asking:
        client.start()
    # an unload that meets a load stops it, and tells who waited: here every unload shall meet a loaded model
    while not all(client.answers for client in asking):
        time.sleep(0.01)
    seconds = []
    for number in range(swaps):
        began = time.perf_counter()
        name = NAMES[number % len(NAMES)]
        call(server, "/v1/models/unload", {"model_id": name})
        call(server, "/v1/models/load", {"model_id": name})
        seconds.append(time.perf_counter() - began)
    for client in asking:
        client.over.set()
    for client in asking:
        client.join()
    after = settled(server)
    faults = sum((client.faults for client in asking), Counter[str]())
    rows = [
        ["swaps", str(swaps)],
        ["ms of a swap, drain included: median (quartiles)", Figures([s * 1e3 for s in seconds]).text(0)],
        ["requests answered", str(sum(client.answers for client in asking))],
        ["requests lost", str(faults.total())],
        ["longest request, s", f"{max(client.longest for client in asking):.2f}"],
        *([what, f"{before[what]} → {after[what]}"] for what in before),
    ]
    print(table(["what", "figure"], rows))
    for fault, times in faults.most_common(10):
        print(f"{times} × {fault}")
    return int(bool(faults) or any(after[what] > before[what] for what in ("descriptors", "children")))


def settled(server: Server) -> dict[str, int]:
    """What the gateway holds with both models unloaded and no client: it may take a moment to let go."""
    for name in NAMES:
        call(server, "/v1/models/unload", {"model_id": name})
    time.sleep(1.0)
    pid = server.process.pid
    return {
        "descriptors": sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir()),
        "children": len(descendants(pid)),
        "resident MiB of the gateway": memory(pid)["rss"] >> 20,
    }


if __name__ == "__main__":
    main()
