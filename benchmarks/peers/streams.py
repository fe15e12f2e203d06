"""Streamed completions over HTTP for a benchmark: one thread for all connections, nothing decoded while the clock
runs, because the client shares the cores with the server that it measures."""

from __future__ import annotations

import json
import re
import selectors
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

LIMIT_SECONDS = 300.0


@dataclass
class Stream:
    """One answer as it came: when its first frame and its end arrived (seconds after all requests were sent)."""

    first: float = 0.0
    end: float = 0.0
    received: bytearray = field(default_factory=bytearray)

    def check(self, tokens: int) -> None:
        """Raises `RuntimeError` unless the server says that it made `tokens` tokens."""
        made = re.findall(rb'"completion_tokens":\s*(\d+)', self.received)
        if not made or int(made[-1]) != tokens:
            start = bytes(self.received[:600]).decode(errors="replace")
            raise RuntimeError(
                f"{made[-1].decode() if made else 'no'} tokens instead of {tokens}; the answer:\n{start}"
            )


def complete(
    port: int, path: str, prompts: Sequence[Sequence[int]], tokens: int, extras: Mapping[str, Any]
) -> list[Stream]:
    """Send all prompts at once, read until every answer has ended."""
    requests = [_request(port, path, prompt, tokens, extras) for prompt in prompts]
    began = time.perf_counter()
    with selectors.DefaultSelector() as selector:
        streams = []
        for request in requests:
            connection = socket.create_connection(("127.0.0.1", port))
            connection.sendall(request)
            stream = Stream()
            streams.append(stream)
            selector.register(connection, selectors.EVENT_READ, stream)
        while selector.get_map():
            ready = selector.select(LIMIT_SECONDS)
            if not ready:
                raise RuntimeError(f"no answer within {LIMIT_SECONDS:.0f} s")
            for key, _ in ready:
                connection, stream = key.fileobj, key.data
                assert isinstance(connection, socket.socket)
                piece = connection.recv(1 << 16)
                stream.received += piece
                now = time.perf_counter() - began
                if not stream.first and b"data:" in stream.received:
                    stream.first = now
                if not piece or b"data: [DONE]" in stream.received[-len(piece) - 16 :]:
                    stream.end = now
                    selector.unregister(connection)
                    connection.close()
    for stream in streams:
        stream.check(tokens)
    return streams


def _request(port: int, path: str, prompt: Sequence[int], tokens: int, extras: Mapping[str, Any]) -> bytes:
    body = {
        "model": "bench",
        "prompt": list(prompt),
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    text = json.dumps(body | dict(extras)).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(text)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + text
