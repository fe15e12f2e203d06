"""A load generator that costs little: raw protocol objects, requests filled in, frames counted and not decoded.

Runs as a process of its own, so that it can have a core of its own; prints one JSON object. `gateway.py` starts it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path
from typing import cast

import uvloop

sys.path.insert(0, str(Path(__file__).parent))
from figures import percentile

# Every request's prompt is another one, for what was asked before may be answered from a cache.
PROMPT = "Say something about the sea and the sky in %s words, please."
BLANK = "000000"


def request_bytes(port: int, *, model: str, stream: bool, tokens: int) -> bytes:
    body = json.dumps(
        {
            "model": model,
            "messages": [{"role": "user", "content": PROMPT % BLANK}],
            "stream": stream,
            "max_tokens": tokens,
        }
    ).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer sk-bench\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Run:
    """What all connections share: how many requests are left to send, and what came back."""

    def __init__(self, request: bytes, count: int) -> None:
        self.before, _, self.after = request.partition(BLANK.encode())
        self.left = count
        self.latencies: list[float] = []
        self.first_frames: list[float] = []
        self.frames = 0
        self.failures = 0


class Connection(asyncio.Protocol):
    """Sends one request after the other. A response ends with its length, or with the last chunk of a stream."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none of asyncio's classes
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.began:
            self.run.failures += 1
        self.closed.set_result(None)

    def _send(self) -> None:
        self.began = 0.0
        if self.run.left <= 0:
            self.transport.close()
            return
        self.run.left -= 1
        self.rest = b""
        self.end: int | None = None  # bytes still to come of a response with a length
        self.chunked = False
        self.first = True
        self.began = time.perf_counter()
        self.transport.write(b"%s%06d%s" % (self.run.before, self.run.left, self.run.after))

    def data_received(self, data: bytes) -> None:
        if not self.chunked and self.end is None:
            data = self.rest + data
            split = data.find(b"\r\n\r\n")
            if split < 0:
                self.rest = data
                return
            head = data[:split].lower()
            data = data[split + 4 :]
            if b" 200 " not in head[:16]:
                self.run.failures += 1
            if b"transfer-encoding: chunked" in head:
                self.chunked = True
            else:
                at = head.index(b"content-length: ") + 16
                self.end = int(head[at:].split(b"\r", 1)[0])
        if self.chunked:
            frames = data.count(b"data: {")
            if frames:
                if self.first:
                    self.first = False
                    self.run.first_frames.append(time.perf_counter() - self.began)
                self.run.frames += frames
            # The last chunk may arrive cut in two.
            if (self.rest[-8:] + data).endswith(b"0\r\n\r\n"):
                self._done()
            else:
                self.rest = data
        else:
            assert self.end is not None
            self.end -= len(data)
            if self.end <= 0:
                self._done()

    def _done(self) -> None:
        self.run.latencies.append(time.perf_counter() - self.began)
        self._send()


async def measure(
    port: int, *, model: str, stream: bool, connections: int, requests: int, tokens: int
) -> dict[str, float]:
    """Send `requests` over `connections`; rates a second, latencies in milliseconds."""
    loop = asyncio.get_running_loop()
    run = Run(request_bytes(port, model=model, stream=stream, tokens=tokens), requests)
    began = time.perf_counter()
    opened = [
        await loop.create_connection(lambda: Connection(run), "127.0.0.1", port) for _ in range(connections)
    ]
    await asyncio.gather(*(protocol.closed for _, protocol in opened))
    seconds = time.perf_counter() - began
    return {
        "requests": len(run.latencies),
        "frames": run.frames,
        "requests_per_second": len(run.latencies) / seconds,
        "frames_per_second": run.frames / seconds,
        "p50_ms": percentile(run.latencies, 0.50) * 1e3,
        "p99_ms": percentile(run.latencies, 0.99) * 1e3,
        "first_p50_ms": percentile(run.first_frames, 0.5) * 1e3 if run.first_frames else 0.0,
        "failures": run.failures,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", default="dummy")
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=16)
    given = parser.parse_args()
    result = uvloop.run(
        measure(
            given.port,
            model=given.model,
            stream=given.stream,
            connections=given.connections,
            requests=given.requests,
            tokens=given.tokens,
        )
    )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
