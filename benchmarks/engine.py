"""The engine beside transformers, on the same checkpoints, threads and token ids, in one run.

    python benchmarks/engine.py [--repeats 5] [--models smollm2 qwen3-0.6b-shape] [--contenders …]

Decode at batch 1, prefill of 512 tokens, and 16 requests at a time (128 tokens in, 64 out). Repeats are interleaved,
so that what else the machine does falls on all of them; medians and quartiles are printed, and ratios to the better
of transformers' two ways. Greedy, bf16, end tokens ignored, prefix caches off, fresh random prompts every time.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from contenders import CONTENDERS, Prompts, Remote
from figures import Figures, machine, table
from peers.environments import PEERS

QWEN = "qwen3-0.6b-shape"
VOCABULARY = range(300, 49000)  # ids that both checkpoints have, none of them special
PEER_NAMES = ("transformers generate", "transformers continuous")

DECODE_PROMPT, DECODE_TOKENS = 32, 65
PREFILL = 512
USERS, USER_PROMPT, USER_TOKENS = 16, 128, 64


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--models", nargs="+", default=["smollm2", QWEN])
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    print(f"{machine()}, {given.threads} threads\n")
    for model in given.models:
        print(compare(model, given.contenders, repeats=given.repeats, threads=given.threads), flush=True)
        print()


def compare(model: str, names: list[str], *, repeats: int, threads: int) -> str:
    """All contenders on one checkpoint; a Markdown table."""
    source = checkpoint(model)
    logs = Path(tempfile.mkdtemp(prefix="inferloom-benchmark-"))
    contenders = [Remote(name, source, threads, logs / f"{name.replace(' ', '-')}.log") for name in names]
    rates: dict[tuple[str, str], list[float]] = {}
    draw = random.Random(0)
    for repeat in range(repeats + 1):  # the first round warms up
        for contender in contenders:
            began = time.perf_counter()
            found = measured(contender, draw)
            print(
                f"{model}: {contender.name}, round {repeat}: {time.perf_counter() - began:.0f} s",
                file=sys.stderr,
            )
            for measure, rate in found.items():
                if repeat:
                    rates.setdefault((contender.name, measure), []).append(rate)
    for contender in contenders:
        contender.close()
    return f"### {model}\n\n" + report(rates, names)


def measured(contender: Remote, draw: random.Random) -> dict[str, float]:
    """Tokens per second of the three measurements. The decode rate leaves the prompt out: a long answer's time less
    a one-token answer's."""
    one = contender.seconds(prompts(draw, 1, DECODE_PROMPT), 1)
    many = contender.seconds(prompts(draw, 1, DECODE_PROMPT), DECODE_TOKENS)
    prefill = contender.seconds(prompts(draw, 1, PREFILL), 1)
    users = contender.seconds(prompts(draw, USERS, USER_PROMPT), USER_TOKENS)
    return {
        "decode, batch 1": (DECODE_TOKENS - 1) / max(many - one, 1e-9),
        "prefill, 512": PREFILL / prefill,
        "16 users, 128 in, 64 out": USERS * USER_TOKENS / users,
    }


def prompts(draw: random.Random, count: int, length: int) -> Prompts:
    return [draw.choices(VOCABULARY, k=length) for _ in range(count)]


def checkpoint(model: str) -> str:
    """The source of a model: a name or path as it is, the random checkpoint made on its first use."""
    if model != QWEN:
        return model
    from checkpoints import make_qwen3_06b_shape

    return make_qwen3_06b_shape(PEERS / "checkpoints" / QWEN).folder


def report(rates: dict[tuple[str, str], list[float]], names: list[str]) -> str:
    rows = []
    for measure in dict.fromkeys(measure for _, measure in rates):
        figures = {name: Figures(rates[name, measure]) for name in names}
        peers = [figures[name].median for name in names if name in PEER_NAMES]
        for name in names:
            ratio = f"{figures[name].median / max(peers):.2f} ×" if peers else ""
            rows.append([measure, name, figures[name].text(1), ratio])
    return table(["tokens per second", "engine", "median (quartiles)", "to transformers' better"], rows)


if __name__ == "__main__":
    main()
