"""How fast models come and go, beside what restarts a process or makes a new runner for it, in one run.

    python benchmarks/swap.py [--repeats 5] [--without NAME …] ROW …
    python benchmarks/swap.py --list

Rows `reload-0.1B-bf16` … `reload-1.2B-int4`: unload → reload → first token of a short prompt, through HTTP, interleaved. Rows
`robin-bf16` and `robin-int4`: six models of 0.6 billion parameters are asked in turn, with memory for three of them.

llama.cpp is restarted as Ollama does it: its process is ended, the next one started and asked for its health every 20 ms.
mistral.rs makes a new `Runner` in its process, `transformers serve` lets its models go by `/reset`; both have what they import
in memory. Weights are random and in the page cache for everybody; packed or converted once, before. 4 bits are our int4
and GGUF's Q4_0.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import priority
from figures import Figures, machine, table
from peers import conversions, llamacpp, streams
from peers.contender import LOGS, THREADS, Contender, HttpContender
from peers.mistralrs import Runners
from peers.pool import note
from peers.transformers_serve import TransformersServe
from processes import INFERLOOM, free_port

SHAPES = {"0.1B": "smollm2-135m-shape", "0.6B": "qwen3-0.6b-shape", "1.2B": "llama3.2-1b-shape"}
WIDTHS = ("bf16", "int4")
SCHEMES = {"bf16": "none", "int4": "int4"}
SETTLE_SECS = 1.0  # for who was stopped to do what its timers have called for meanwhile
RELOADS = {f"reload-{size}-{width}": (size, width) for size in SHAPES for width in WIDTHS}
ROBINS = {f"robin-{width}": width for width in WIDTHS}
GOAL = 3.0
CONTEXT = 8192  # tokens
ROBIN_CONTEXT = 2048  # tokens: of one answer at a time, so that models are most of what takes memory
MODELS, KEPT = 6, 3
TOKENS = 4
ROOM = 3.3  # of what one model takes: three of them fit and a fourth does not
PROMPT = "abcdefghijklmnopqrstuvwxyz012345"  # 32 tokens to every tokenizer here
IDS = range(300, 49000)

Measure = Callable[[], float]
_draw = random.Random(0)


def main() -> None:
    names = [*RELOADS, *ROBINS]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", metavar="ROW")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--without", nargs="*", default=[], metavar="NAME", help="peers to leave out")
    parser.add_argument("--list", action="store_true", help="print the rows")
    given = parser.parse_args()
    if given.list:
        print("\n".join(names))
        return
    for name in given.rows:
        if name not in names:
            parser.error(f"no row is called {name!r}; the rows are {', '.join(names)}")
    priority.own_session()
    told = priority.raise_priority()
    print(f"{machine()}, {THREADS} threads, {told}, load {os.getloadavg()[0]:.2f}\n", flush=True)
    for name in given.rows or names:
        run = reload_row if name in RELOADS else robin_row
        print(run(name, repeats=given.repeats, without=set(given.without)), flush=True)
        print(flush=True)


# --- unload, reload, first token ----------------------------------------------------------------------------------------


def reload_row(name: str, *, repeats: int, without: set[str]) -> str:
    size, width = RELOADS[name]
    shape = SHAPES[size]
    folder = conversions.checkpoint(shape)
    values: dict[str, list[float]] = {}
    with ExitStack() as stack:
        found = list(_reloaders(stack, shape, folder, width, without))
        measures = {
            who: _alone(measure, [one for other, one, _ in found if other != who])
            for who, _, measure in found
        }
        for measure in measures.values():
            measure()  # warms up
        for repeat in range(repeats):
            # turned round each time, so that a drift of the machine falls on everybody
            for who in list(measures) if repeat % 2 == 0 else reversed(list(measures)):
                values.setdefault(who, []).append(measures[who]())
                note(f"{name}, round {repeat + 1}: {who} {values[who][-1]:.3f} s")
    return report(name, "s: median (quartiles)", values)


def _reloaders(
    stack: ExitStack, shape: str, folder: Path, width: str, without: set[str]
) -> Iterator[tuple[str, Contender, Measure]]:
    """Each contender, started, and what one turn of it is; ours first. One that cannot start is left out, with the reason
    on stderr."""
    ours = stack.enter_context(_own({"bench": folder}, width))
    yield "inferloom", ours, lambda: ours.timed_reload(_ids())
    if "llama.cpp" not in without:
        file = conversions.gguf_file(llamacpp.KINDS[width], shape)
        with _excused("llama.cpp"):
            llama = llamacpp.server(file, llamacpp.KINDS[width])
            stack.enter_context(llama)
            yield "llama.cpp, restarted", llama, lambda: _restarted(llama, _ids())
    if "mistral.rs" not in without:
        weights = (
            _for_mistral(folder) if width == "bf16" else conversions.gguf_file(llamacpp.KINDS[width], shape)
        )
        with _excused("mistral.rs"):
            runners = stack.enter_context(Runners(keep=1))
            runners.ask("bench", weights, PROMPT, tokens=1, anew=True)
            yield (
                "mistral.rs, new runner",
                runners,
                lambda: runners.ask("bench", weights, PROMPT, tokens=1, anew=True),
            )
    if "transformers" not in without and width == "bf16":
        with _excused("transformers serve"):
            serve = stack.enter_context(TransformersServe())
            serve.reload(folder, PROMPT)
            yield "transformers serve, reset", serve, lambda: serve.reload(folder, PROMPT)


def _alone(measure: Measure, others: list[Contender]) -> Measure:
    """`measure` while the others are stopped where they are: some spin when nothing is asked of them."""

    def one() -> float:
        for other in others:
            other.pause()
        time.sleep(SETTLE_SECS)
        try:
            return measure()
        finally:
            for other in others:
                other.resume()

    return one


def _restarted(llama: HttpContender, prompt: list[int]) -> float:
    began = time.perf_counter()
    llama.__exit__()
    llama.__enter__()
    llama.first_token(prompt)
    return time.perf_counter() - began


# --- six models in turn, memory for three -------------------------------------------------------------------------------


def robin_row(name: str, *, repeats: int, without: set[str]) -> str:
    width = ROBINS[name]
    folders = {
        f"m{number}": folder for number, folder in enumerate(_copies(conversions.checkpoint(), MODELS))
    }
    seconds: dict[str, list[float]] = {}
    firsts: dict[str, list[float]] = {}
    notes = []
    for who, ask in {
        "inferloom": _own_robin,
        "llama.cpp": _llama_robin,
        "mistral.rs": _mistral_robin,
    }.items():
        if who in without:
            continue
        with _excused(who), ask(folders, width) as one:
            for model in folders:
                one(model)  # warms up, and fills the memory
            for round_ in range(repeats):
                for model in folders:
                    first, whole = one(model)
                    seconds.setdefault(who, []).append(whole)
                    if first:
                        firsts.setdefault(who, []).append(first)
                note(
                    f"{name}, round {round_ + 1}: {who} {sum(seconds[who][-MODELS:]):.2f} s for {MODELS} requests"
                )
            if loads := getattr(one, "loads", None):
                notes.append(f"{who} loaded {loads():.0f} times for {len(seconds[who])} requests")
    texts = [report(name, f"s of a request of {TOKENS} tokens: median (quartiles)", seconds)]
    rates = [[who, f"{len(times) / sum(times):.2f}"] for who, times in seconds.items()]
    texts.append(table(["engine", "requests per second"], rows=rates))
    rows = [[who, Figures(times).text(3)] for who, times in firsts.items()]
    texts.append(table(["engine", "s to the first token, swap included"], rows))
    return "\n\n".join([*texts, *notes])


class _OwnTurn:
    """One request to our server; `loads` says how often a model was loaded since the first one."""

    def __init__(self, server: HttpContender, models: list[str]) -> None:
        self._server = server
        self._models = models
        self._turns = 0
        self._before = 0.0

    def __call__(self, model: str) -> tuple[float, float]:
        if self._turns == len(self._models):
            self._before = self._counted()
        self._turns += 1
        answer = streams.complete(self._server.port, "/v1/completions", [_ids()], TOKENS, {"model": model})[0]
        return answer.first, answer.end

    def loads(self) -> float:
        return self._counted() - self._before

    def _counted(self) -> float:
        return float(sum(int(self._server.get(f"/v1/models/{model}")["loads"]) for model in self._models))


@contextmanager
def _own_robin(folders: dict[str, Path], width: str) -> Iterator[_OwnTurn]:
    with _own(folders, width, robin=True) as server:
        for model in folders:  # packed once, before
            server.post("/v1/models/load", {"model_id": model})
            server.post("/v1/models/unload", {"model_id": model})
        needs = server.post("/v1/models/plan", {"model_id": next(iter(folders))})["bytes"]
    budget = int(ROOM * sum(needs.values())) >> 20
    with (
        _own(folders, width, robin=True, budget=f"{budget}MiB") as server,
        priority.shared_with_children(server.pids()),
    ):
        yield _OwnTurn(server, list(folders))


@contextmanager
def _llama_robin(folders: dict[str, Path], width: str) -> Iterator[Callable[[str], tuple[float, float]]]:
    kind = llamacpp.KINDS[width]
    original = conversions.gguf_file(kind)
    files = {model: _linked(original, folder / original.name) for model, folder in folders.items()}
    running: dict[str, HttpContender] = {}

    def one(model: str) -> tuple[float, float]:
        began = time.perf_counter()
        server = running.pop(model, None)
        if server is None:
            if len(running) == KEPT:
                running.pop(next(iter(running))).__exit__()
            server = llamacpp.server(files[model], kind)
            server.__enter__()
        running[model] = server
        before = time.perf_counter() - began
        answer = streams.complete(server.port, "/v1/completions", [_ids()], TOKENS, {"cache_prompt": False})[
            0
        ]
        return before + answer.first, before + answer.end

    try:
        yield one
    finally:
        for server in running.values():
            server.__exit__()


@contextmanager
def _mistral_robin(folders: dict[str, Path], width: str) -> Iterator[Callable[[str], tuple[float, float]]]:
    weights = {model: _for_mistral(folder) for model, folder in folders.items()}
    if width != "bf16":
        original = conversions.gguf_file(llamacpp.KINDS[width])
        places = {model: folder.parent / f"gguf-{model}" for model, folder in folders.items()}
        weights = {model: _linked(original, place / original.name) for model, place in places.items()}
    with Runners(keep=KEPT) as runners:

        def one(model: str) -> tuple[float, float]:
            return 0.0, runners.ask(model, weights[model], PROMPT, tokens=TOKENS, anew=False)

        yield one


# --- what both have in common -------------------------------------------------------------------------------------------


class _Own(HttpContender):
    def get(self, path: str) -> dict[str, object]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as answer:
            found: dict[str, object] = json.load(answer)
        return found


def _own(folders: dict[str, Path], width: str, *, robin: bool = False, budget: str = "80%") -> _Own:
    """`inferloom serve` with these models, none loaded, and everything else as it comes."""
    LOGS.mkdir(parents=True, exist_ok=True)
    lines = [f'[runtime]\nmemory_budget = "{budget}"']
    context, options = CONTEXT, f"threads = {THREADS}"
    if robin:
        context, options = ROBIN_CONTEXT, f"{options}, max_batch_size = 1"
    for name, folder in folders.items():
        lines.append(
            f'[[model]]\nname = "{name}"\nsource = "{folder}"\nlazy = true\nmax_model_len = {context}'
        )
        lines.append(f'quantization = "{SCHEMES[width]}"')
        lines.append(f'driver = {{type = "native", device = ["cpu"], options = {{{options}}}}}')
    port = free_port()
    file = LOGS / f"swap-{port}.toml"
    file.write_text("\n".join(lines))
    command = [*INFERLOOM, "serve", "--config", file, "--port", str(port), "--log-level", "warning"]
    return _Own(f"inferloom {width} {len(folders)}", command, port=port, health="/ready")


def _ids() -> list[int]:
    return _draw.choices(IDS, k=32)


def _copies(folder: Path, count: int) -> list[Path]:
    """Folders with the same files under other names: hard links."""
    found = []
    for number in range(count):
        copy = conversions.CHECKPOINTS / "robin" / f"m{number}"
        copy.mkdir(parents=True, exist_ok=True)
        for file in folder.iterdir():
            if file.is_file():
                _linked(file, copy / file.name)
        found.append(copy)
    return found


def _for_mistral(folder: Path) -> Path:
    """The same checkpoint, whose end token is one that mistral.rs finds in the tokenizer."""
    copy = conversions.CHECKPOINTS / "mistral.rs" / folder.name
    for file in folder.iterdir():
        if file.is_file() and file.name not in ("config.json", "tokenizer_config.json"):
            _linked(file, copy / file.name)
    for name, end in {
        "config.json": {"eos_token_id": 0},
        "tokenizer_config.json": {"eos_token": "!"},
    }.items():
        there = json.loads((folder / name).read_text())
        (copy / name).unlink(missing_ok=True)  # never written through a link
        (copy / name).write_text(json.dumps(there | end))
    return copy


def _linked(file: Path, link: Path) -> Path:
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.exists():
        try:
            os.link(file, link)
        except OSError:
            shutil.copy(file, link)
    return link


@contextmanager
def _excused(name: str) -> Iterator[None]:
    """A peer that cannot be had is not compared, and said so."""
    try:
        yield
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        if name == "inferloom":
            raise
        note(f"{name} is not compared: {error}")


def report(name: str, title: str, values: dict[str, list[float]]) -> str:
    """A table, and our ratio to the best peer: their seconds by ours."""
    ours = values["inferloom"]
    rows = []
    for who, times in values.items():
        ratio = "" if who == "inferloom" else Figures(_ratios(times, ours)).text(2)
        rows.append([who, Figures(times).text(3), ratio])
    lines = [f"### {name}", "", table(["engine", title, "its seconds by ours"], rows), ""]
    peers = {who: times for who, times in values.items() if who != "inferloom"}
    if not peers:
        return "\n".join([*lines, f"{name}: no verdict, no peer started"])
    best = min(peers, key=lambda who: Figures(peers[who]).median)
    found = Figures(_ratios(peers[best], ours))
    verdict = "goal reached" if found.median >= GOAL else "below the goal"
    return "\n".join([*lines, f"{name}: {found.text(2)} × faster than {best}; goal {GOAL:g}: {verdict}"])


def _ratios(theirs: list[float], ours: list[float]) -> list[float]:
    with suppress(ValueError):
        return [their / our for their, our in zip(theirs, ours, strict=True)]
    raise SystemExit("the runs are not of one length")


if __name__ == "__main__":
    main()
