"""Many unlike requests at once: each is answered as if it had been alone."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
from factories.server import Served, serving
from system.clients import streaming
from system.processes import wait_until, worker_of

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "while",
    "seven",
    "ships",
    "sail",
    "past",
    "cold",
    "grey",
    "islands",
]
CALLER_LEFT = None


def requests(count: int) -> list[dict[str, Any]]:
    """Random ones; those with `left` are streams that their client leaves after so many tokens."""
    rng = random.Random(3)
    made: list[dict[str, Any]] = []
    for number in range(count):
        prompt = " ".join(rng.choices(WORDS, k=rng.choice([1, 4, 30, 90])))
        if number % 5 == 0:
            prompt = " ".join(WORDS * 8) + " " + prompt  # a beginning that several share
        request: dict[str, Any] = {
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": rng.choice([1, 7, 24]),
            "seed": number,
            "temperature": rng.choice([0, 0.7, 1.5]),
        }
        request |= rng.choice(
            [{}, {"top_k": 5}, {"top_p": 0.8}, {"min_p": 0.05}, {"repetition_penalty": 1.3}]
        )
        request |= rng.choice(
            [{}, {}, {"n": 3}, {"stop": ["e"]}, {"response_format": {"type": "json_object"}}]
        )
        made.append({"left": rng.randint(1, 20)} if number % 4 == 3 else request)
    return made


def send(served: Served, model: str, request: dict[str, Any]) -> list[str] | None:
    """The texts of the choices; None where the client left."""
    if "left" in request:
        with streaming(served, model, tokens=4000) as stream:
            stream.read(tokens=request["left"])
        return CALLER_LEFT
    answer = httpx.post(f"{served.url}/v1/chat/completions", json={**request, "model": model}, timeout=100)
    assert answer.status_code == 200, answer.text
    return [choice["message"]["content"] for choice in answer.json()["choices"]]


def test_finished_texts_are_those_alone_whatever_runs_beside_them(checkpoints: Path) -> None:
    source = checkpoints / "second"
    exact = f"{source},activation_dtype=float32,threads=1"
    # room for few at a time, so that requests wait, share and give up their pages
    crowded = f"{exact},name=crowded,max_batch_size=6,max_batch_tokens=64"
    alone = f"{exact},name=alone,max_batch_size=1,prefix_cache=false"
    with serving("-m", crowded, "-m", alone, "--max-model-len", "4500") as served:
        asked = requests(32)
        with ThreadPoolExecutor(16) as together:
            answers = list(together.map(lambda request: send(served, "crowded", request), asked))
        for request, texts in zip(asked, answers, strict=True):
            if texts is not CALLER_LEFT:
                assert send(served, "alone", request) == texts, request
        metrics = httpx.get(f"{served.url}/metrics").text
        left = sum("left" in request for request in asked)
        assert f'inferloom_requests_cancelled_total{{model="crowded"}} {left}.0' in metrics
        assert "inferloom_errors_total{" not in metrics
        httpx.post(f"{served.url}/v1/models/unload", json={"model_id": "alone"}, timeout=30)
        wait_until(worker_of(served, source).rests)
