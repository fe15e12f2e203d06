"""How much one core of gateway carries: HTTP in, real template and tokenizer, worker, one SSE frame per token out.

    python benchmarks/gateway.py [--repeats 5] [--no-peer]

The rate per second of the server's own CPU time is what a core carries that has nothing else to do: on a busy machine
it is the steadier figure.

The gateway is pinned to one core, its worker (the dummy driver: no arithmetic) and the load generator to another.
Streams are counted in SSE frames: ours sends one for every token and two around them, LiteLLM one for every piece that
its mock is cut into. LiteLLM's proxy, answering from its mock, is measured in the same run, on the same core, by the same generator.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from figures import Figures, machine, table
from peers import environments
from processes import INFERLOOM, Server, cpu_seconds, descendants, free_port, memory, pin, serving

# Long enough for every request below at one word a token.
TEXT = " ".join(["sea", "and", "sky", "are", "wide", "blue", "calm", "old"] * 32)
LITELLM = ["litellm[proxy]"]

LOADS = {
    "1 connection": {"connections": 1, "requests": 400, "tokens": 1, "stream": False},
    "64 connections, 16 tokens": {"connections": 64, "requests": 6000, "tokens": 16, "stream": False},
    "64 streams of 128 tokens": {"connections": 64, "requests": 1500, "tokens": 128, "stream": True},
}
# The proxy is slower by far: a smaller count takes as long.
SHARE_OF_PEER = 0.1
LIMIT_SECONDS = 120.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-peer", action="store_true", help="leave LiteLLM out")
    given = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    gateway_core, other_core = cores[0], cores[-1]
    print(machine())
    print(f"gateway on core {gateway_core}, worker and load generator on core {other_core}\n")
    with ExitStack() as stack:
        servers = {"inferloom": (stack.enter_context(inferloom()), 1.0)}
        if not given.no_peer:
            servers["litellm"] = (stack.enter_context(litellm()), SHARE_OF_PEER)
        for server, _ in servers.values():
            pin(server.process.pid, {gateway_core})
            for child in descendants(server.process.pid):
                pin(child, {other_core})
        results: dict[tuple[str, str], list[dict[str, float]]] = {}
        for _ in range(given.repeats + 1):  # the first round warms up
            for label, load in LOADS.items():
                for name, (server, share) in servers.items():
                    results.setdefault((label, name), []).append(
                        run_load(server, load, share=share, core=other_core)
                    )
        resident = {name: memory(server.process.pid)["rss"] for name, (server, _) in servers.items()}
    print(report(results, list(servers)))
    print()
    for name, size in resident.items():
        print(f"resident memory of {name}'s process after the load: {size / 2**20:.0f} MiB")


def inferloom() -> AbstractContextManager[Server]:
    """Our server with one scripted model that has smollm2's tokenizer and template."""
    port = free_port()
    model = f"smollm2,name=dummy,driver=dummy,text={TEXT}"
    command = [*INFERLOOM, "serve", "-m", model, "--port", str(port), "--log-level", "warning"]
    return serving(command, port=port, health="/ready", log=log("inferloom"))


def litellm() -> AbstractContextManager[Server]:
    """LiteLLM's proxy with its mock response, one worker, no callbacks, no network."""
    folder = environments.environment("litellm", LITELLM)
    print(f"LiteLLM {environments.version(folder, 'litellm')}")
    port = free_port()
    settings = Path(tempfile.mkdtemp()) / "litellm.json"
    model = {"model": "openai/dummy", "api_key": "none", "mock_response": TEXT}
    # YAML is a superset of JSON.
    settings.write_text(json.dumps({"model_list": [{"model_name": "dummy", "litellm_params": model}]}))
    command = [
        folder / "litellm",
        "--config",
        settings,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--num_workers",
        "1",
    ]
    environment = {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_TELEMETRY": "False",
        "LITELLM_LOG": "ERROR",
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",  # without keys, as ours: it costs less
    }
    return serving(
        command, port=port, health="/health/liveliness", environment=environment, log=log("litellm")
    )


def log(name: str) -> Path:
    return Path(tempfile.gettempdir()) / f"inferloom-benchmark-{name}.log"


def run_load(server: Server, load: dict[str, int | bool], *, share: float, core: int) -> dict[str, float]:
    """One run of the load generator in its own process, on `core`."""
    command = [
        *("taskset", "-c", str(core), sys.executable, str(Path(__file__).with_name("load.py"))),
        *("--port", str(server.port), "--connections", str(load["connections"])),
        *("--requests", str(max(int(load["connections"]) * 2, int(load["requests"] * share)))),
        *("--tokens", str(load["tokens"])),
        *(["--stream"] if load["stream"] else []),
    ]
    before = cpu_seconds(server.process.pid)
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=LIMIT_SECONDS)
    result: dict[str, float] = json.loads(done.stdout)
    used = cpu_seconds(server.process.pid) - before
    result["per_cpu_second"] = result["frames" if load["stream"] else "requests"] / max(used, 1e-2)
    if result["failures"]:
        raise SystemExit(f"{result['failures']:.0f} requests to port {server.port} failed")
    return result


def report(results: dict[tuple[str, str], list[dict[str, float]]], names: list[str]) -> str:
    """Medians and quartiles, and our rate as a multiple of the peer's."""
    rows = []
    for label, load in LOADS.items():
        key, unit = (
            ("frames_per_second", "frames/s") if load["stream"] else ("requests_per_second", "requests/s")
        )
        rates = {name: Figures([run[key] for run in results[label, name][1:]]) for name in names}
        for name in names:
            runs = results[label, name][1:]
            rows.append(
                [
                    label,
                    name,
                    f"{rates[name].text()} {unit}",
                    Figures([run["per_cpu_second"] for run in runs]).text(),
                    Figures([run["p50_ms"] for run in runs]).text(2),
                    Figures([run["p99_ms"] for run in runs]).text(2),
                    f"{rates[name].median / rates[names[-1]].median:.1f} ×" if len(names) > 1 else "",
                ]
            )
    return table(
        [
            "load",
            "server",
            "rate: median (quartiles)",
            "per second of its CPU time",
            "p50 ms",
            "p99 ms",
            "ratio",
        ],
        rows,
    )


if __name__ == "__main__":
    main()
