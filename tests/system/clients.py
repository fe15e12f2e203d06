"""Clients of a server: the official one, and streams read as they come over the wire."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
from factories.server import Served


def connect(served: Served, *, api_key: str = "none") -> openai.OpenAI:
    """The official client without its retries: the first answer counts."""
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key=api_key, max_retries=0, timeout=100)


class Stream:
    """A chat stream that has begun: what is read of it is kept."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self.events: list[Any] = []
        self.done = False

    def read(self, *, tokens: int | None = None) -> None:
        """Read until so many tokens came, or to the end."""
        while (tokens is None or len(self.tokens) < tokens) and not self.done:
            line = next(self._lines, None)
            assert line is not None, f"the stream ended without [DONE]: {self.events[-1:]}"
            if line == "data: [DONE]":
                self.done = True
                assert not "".join(self._lines), "something follows [DONE]"
            elif line.startswith("data: "):
                self.events.append(json.loads(line[6:]))

    @property
    def _choices(self) -> list[Any]:
        return [choice for event in self.events for choice in event.get("choices", [])]

    @property
    def tokens(self) -> list[str]:
        return [
            entry["token"]
            for choice in self._choices
            for entry in (choice.get("logprobs") or {}).get("content") or []
        ]

    @property
    def finish(self) -> str | None:
        return next((one["finish_reason"] for one in reversed(self._choices) if one["finish_reason"]), None)

    @property
    def error(self) -> Any:
        """The error of the last event, if it is one."""
        return self.events[-1].get("error") if self.events else None


@contextmanager
def streaming(served: Served, model: str, *, tokens: int, **fields: object) -> Iterator[Stream]:
    """A chat with logprobs, of so many tokens whatever they are, as a stream."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "Go on."}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "logprobs": True,
        "stream": True,
        **fields,
    }
    with (
        httpx.Client(timeout=60) as client,
        client.stream("POST", f"{served.url}/v1/chat/completions", json=body) as response,
    ):
        assert response.status_code == 200, response.read()
        yield Stream(response.iter_lines())


def change(served: Served, verb: str, model: str, **fields: object) -> Any:
    """Load, unload, reload or status."""
    answer = httpx.post(f"{served.url}/v1/models/{verb}", json={"model_id": model, **fields}, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()
