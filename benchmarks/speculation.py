"""What speculation brings: the same requests with and without drafts, in one process, interleaved.

    python benchmarks/speculation.py [--model smollm2] [--repeats 3] [--tokens 128] [--executor auto]

Two texts: one that repeats itself (the answer copies from its prompt) and one of random tokens, at batch 1 and 8, greedy
and at temperature 0.8. Prints tokens per second, the share of drafted tokens that held, and the ratio.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from figures import machine, table

from inferloom.engine.engine import Engine
from inferloom.engine.messages import Generate, SamplingSpec
from inferloom.formats.prepare import prepare
from inferloom.models.batch import Executor
from inferloom.models.loader import load

VOCABULARY = range(300, 49000)
USERS = (1, 8)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--executor", choices=["auto", "reference"], default="auto")
    given = parser.parse_args()
    checkpoint = prepare(given.model)
    engines = {}
    for name, longest in (("without", 0), ("with", 8)):
        executor = load(checkpoint, max_model_len=2048, executor=given.executor)
        assert isinstance(executor, Executor)
        engines[name] = Engine(executor, pages=400, prefix_cache=False, speculative_tokens=longest)
    rows = []
    for text in ("repetitive", "random"):
        for users in USERS:
            for temperature in (0.0, 0.8):
                rows.append(compare(engines, text, users, temperature, given.repeats, given.tokens))
    print(machine(), "\n")
    print(table(["text", "users", "temperature", "without, tok/s", "with", "ratio", "held"], rows))


def compare(
    engines: dict[str, Engine], text: str, users: int, temperature: float, repeats: int, tokens: int
) -> list[str]:
    rates: dict[str, list[float]] = {name: [] for name in engines}
    before = engines["with"].stats()
    for repeat in range(repeats + 1):  # the first round warms up
        for name, engine in engines.items():
            draw = random.Random(repeat)
            requests = [
                Generate(user, prompt(draw, text), tokens, SamplingSpec(temperature=temperature, seed=user))
                for user in range(users)
            ]
            rate = decode_rate(engine, requests)
            if repeat:
                rates[name].append(rate)
    after = engines["with"].stats()
    drafted = after.drafted_tokens - before.drafted_tokens
    held = (after.accepted_tokens - before.accepted_tokens) / drafted if drafted else 0.0
    without, quick = (statistics.median(rates[name]) for name in ("without", "with"))
    return [
        text,
        str(users),
        f"{temperature:g}",
        f"{without:.0f}",
        f"{quick:.0f}",
        f"{quick / without:.2f} ×",
        f"{held:.0%} of {drafted}",
    ]


def prompt(draw: random.Random, text: str) -> list[int]:
    if text == "random":
        return draw.choices(VOCABULARY, k=64)
    return draw.choices(VOCABULARY, k=16) * 8


def decode_rate(engine: Engine, requests: list[Generate]) -> float:
    """Tokens per second after the prompts' step."""
    for request in requests:
        engine.submit(request)
    counted = sum(len(step.tokens) for step in engine.step())
    began, total = time.perf_counter(), -counted
    while engine.has_work:
        counted += sum(len(step.tokens) for step in engine.step())
    return (counted + total) / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
