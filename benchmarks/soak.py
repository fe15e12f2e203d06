"""Many swaps of models under request load: does anything get lost, and does anything grow?

    python benchmarks/soak.py [--swaps 200] [--clients 4]

Four random checkpoints of different sizes are served, of which two may be in memory at once. One hand unloads and loads
models at random while clients ask all four, so that their requests swap models too. Exit status 1 if a request was lost,
if the gateway holds more descriptors or children at the end than at the beginning, if the memory of its process tree has
grown by more than 16 MiB, or if a process outlives the server. Prefixes that wait for their model in the bounded store are
no process's memory.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from checkpoints import SMOLLM2_135M, make_shape
from figures import Figures, machine, table
from processes import INFERLOOM, Server, descendants, free_port, memory, serving
from startup import call

LAYERS = {"ash": 2, "elm": 4, "fir": 6, "oak": 8}
NAMES = tuple(LAYERS)
LOADED = 2  # models in memory at once
TOKENS = 4
PROMPT = "There was a time when every tree of the wood had a name, and the wind knew all of them. " * 2
GROWTH_MIB = 16
SEED = 1


class Client(threading.Thread):
    """Asks models at random, whole and streamed by turns. `faults`: what was not a complete answer."""

    def __init__(self, port: int, seed: int) -> None:
        super().__init__(daemon=True)
        self.answers = 0
        self.longest = 0.0  # seconds
        self.faults: Counter[str] = Counter()
        self.over = threading.Event()
        self._port = port
        self._draw = random.Random(seed)

    def run(self) -> None:
        while not self.over.is_set():
            name = self._draw.choice(NAMES)
            for _ in range(self._draw.randint(1, 8)):  # as users ask: several times the same model
                began = time.perf_counter()
                fault = self.ask(name, stream=self.answers % 2 == 1)
                self.longest = max(self.longest, time.perf_counter() - began)
                self.answers += 1
                if fault:
                    self.faults[fault] += 1

    def ask(self, name: str, *, stream: bool) -> str:
        body = {
            "model": name,
            "prompt": f"{PROMPT}{self._draw.randint(0, 9)}",
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
    parser.add_argument("--clients", type=int, default=4)
    arguments = parser.parse_args()
    print(f"{machine()}\n")
    with tempfile.TemporaryDirectory() as folder:
        config = configuration(Path(folder))
        port = free_port()
        command = [*INFERLOOM, "serve", "--config", config, "--port", str(port), "--log-level", "warning"]
        home = {"INFERLOOM_HOME": folder, "INFERLOOM_CACHE": f"{folder}/cache"}
        with serving(command, port=port, health="/health", environment=home) as server:
            status = soak(server, swaps=arguments.swaps, clients=arguments.clients)
            family = {pid: birth(pid) for pid in descendants(server.process.pid)}
        left = [pid for pid, born in family.items() if born and birth(pid) == born]
    print(f"processes that outlive the server: {left or 'none'}")
    sys.exit(status or bool(left))


def configuration(folder: Path) -> Path:
    """Writes four checkpoints and the file that declares them."""
    small = {"hidden_size": 256, "intermediate_size": 768, "vocab_size": 8192, "num_attention_heads": 4}
    small |= {"num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 1024}
    lines = [f"[server]\nmax_loaded = {LOADED}\ndefault_model = '{NAMES[0]}'"]
    lines.append("[runtime]\nkv_store_memory = '4MiB'\nkv_store_disk = '16MiB'")
    for name, layers in LAYERS.items():
        made = make_shape(folder / name, {**SMOLLM2_135M, **small, "num_hidden_layers": layers})
        options = "{threads = 1, max_batch_size = 8}"
        lines.append(f"[[model]]\nname = '{name}'\nsource = '{made.folder}'\nlazy = true")
        lines.append(f"driver = {{type = 'native', device = ['cpu'], options = {options}}}")
    file = folder / "config.toml"
    file.write_text("\n".join(lines))
    return file


def soak(server: Server, *, swaps: int, clients: int) -> int:
    """Prints what was seen; the exit status."""
    draw = random.Random(SEED)
    warm = Client(server.port, SEED)
    for name in NAMES:  # what is imported and read once is there before anything is counted
        for stream in (False, True):
            if fault := warm.ask(name, stream=stream):
                raise SystemExit(f"{name}: {fault}")
    before = settled(server)
    loads = loaded(server)
    asking = [Client(server.port, SEED + number) for number in range(1, clients + 1)]
    for client in asking:
        client.start()
    seconds = []
    for _ in range(swaps):
        began = time.perf_counter()
        name = draw.choice(NAMES)
        call(server, "/v1/models/unload", {"model_id": name})
        call(server, "/v1/models/load", {"model_id": name})
        seconds.append(time.perf_counter() - began)
    for client in asking:
        client.over.set()
    for client in asking:
        client.join()
    loads = loaded(server) - loads
    after = settled(server)
    faults = sum((client.faults for client in asking), Counter[str]())
    rows = [
        ["swaps asked for", str(swaps)],
        ["loads, those by requests included", str(loads)],
        ["ms of a swap, drain included: median (quartiles)", Figures([s * 1e3 for s in seconds]).text(0)],
        ["requests answered", str(sum(client.answers for client in asking))],
        ["requests lost", str(faults.total())],
        ["longest request, s", f"{max(client.longest for client in asking):.2f}"],
        *([what, f"{before[what]} → {after[what]}"] for what in before),
    ]
    print(table(["what", "figure"], rows))
    for fault, times in faults.most_common(10):
        print(f"{times} × {fault}")
    grown = after["MiB of the process tree (PSS)"] - before["MiB of the process tree (PSS)"] > GROWTH_MIB
    more = any(after[what] > before[what] for what in ("descriptors", "children"))
    return int(bool(faults) or grown or more)


def loaded(server: Server) -> int:
    """Loads since the server's start."""
    total = 0
    for name in NAMES:
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        connection.request("GET", f"/v1/models/{name}")
        total += int(json.load(connection.getresponse())["loads"])
        connection.close()
    return total


def settled(server: Server) -> dict[str, int]:
    """What the server holds with every model unloaded and no client: it may take a moment to let go."""
    for name in NAMES:
        call(server, "/v1/models/unload", {"model_id": name})
    time.sleep(1.0)
    pid = server.process.pid
    family = [pid, *descendants(pid)]
    pss = 0
    for member in family:
        with suppress(OSError):
            pss += memory(member)["pss"]
    return {
        "descriptors": sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir()),
        "children": len(family) - 1,
        "resident MiB of the gateway": memory(pid)["rss"] >> 20,
        "MiB of the process tree (PSS)": pss >> 20,
    }


def birth(pid: int) -> str:
    """When a process began, in ticks since boot; empty: it is gone, reaped or not."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


if __name__ == "__main__":
    main()
