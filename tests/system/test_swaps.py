"""Models that come and go all day: nothing is lost and nothing is left."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
from factories.server import Served, serving
from system.clients import change
from system.processes import gateway_of, wait_until

SWAPS = 20
TOKENS = 5
NAMES = ("first", "second")


def whole(answer: httpx.Response, *, stream: bool) -> bool:
    """Whether an answer is complete."""
    if answer.status_code != 200:
        return False
    if stream:
        return '"finish_reason":"length"' in answer.text and answer.text.endswith("data: [DONE]\n\n")
    return bool(answer.json()["usage"]["completion_tokens"] == TOKENS)


@contextmanager
def asking(served: Served, name: str, *, failures: list[str]) -> Iterator[list[int]]:
    """One client that asks a model again and again, whole and streamed by turns; the statuses of its answers."""
    statuses: list[int] = []
    over = threading.Event()

    def ask(client: httpx.Client, *, stream: bool) -> None:
        body = {"model": name, "prompt": "x", "max_tokens": TOKENS, "ignore_eos": True, "stream": stream}
        answer = client.post(f"{served.url}/v1/completions", json=body)
        statuses.append(answer.status_code)
        if not whole(answer, stream=stream):
            failures.append(answer.text)

    def work() -> None:
        with httpx.Client(timeout=60) as client:
            while not over.is_set():
                ask(client, stream=len(statuses) % 2 == 1)

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(work)
        try:
            yield statuses
        finally:
            over.set()
            done.result()


def test_swaps_under_load_lose_no_request_and_leave_no_process_and_no_descriptor(
    checkpoints: Path, tmp_path: Path
) -> None:
    flags = [flag for name in NAMES for flag in ("-m", f"{checkpoints / name},name={name},threads=1")]
    with serving(*flags, environment={"INFERLOOM_HOME": str(tmp_path)}) as served:
        gateway = gateway_of(served)

        def settle() -> tuple[int, int]:
            """Children and descriptors of the gateway with both models unloaded and no client."""
            for name in NAMES:
                change(served, "unload", name)
            wait_until(lambda: len(gateway.children) == 1)  # the forkserver
            return len(gateway.children), gateway.descriptors

        for name in NAMES:
            change(served, "unload", name)
            change(served, "load", name)
        before = settle()

        failures: list[str] = []
        with (
            asking(served, NAMES[0], failures=failures) as one,
            asking(served, NAMES[1], failures=failures) as two,
        ):
            # an unload that meets a load stops it, and tells who waited: here every unload meets a loaded model
            wait_until(lambda: bool(one and two))
            for number in range(SWAPS):
                seen = len(one), len(two)
                change(served, "unload", NAMES[number % 2])
                change(served, "load", NAMES[number % 2])
                wait_until(lambda seen=seen: len(one) > seen[0] and len(two) > seen[1])  # type: ignore[misc]

        assert failures == []
        assert set(one) == set(two) == {200}
        assert change(served, "status", NAMES[0])["status"] == "loaded"
        assert served.printed.count("first ready in ") >= SWAPS // 2
        wait_until(lambda: settle() == before)
