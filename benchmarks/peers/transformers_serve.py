"""`transformers serve` as a contender: one process, whose server goes on running while its models come and go."""

from __future__ import annotations

import http.client
import json
import time
from pathlib import Path

from processes import free_port

from peers.contender import THREADS, HttpContender
from peers.environments import environment

REQUIREMENTS = ["torch==2.13.0", "transformers[serving]==5.23.0"]


class TransformersServe(HttpContender):
    """Weights in bf16 alone: its 4 bits need a GPU's library."""

    def __init__(self) -> None:
        port = free_port()
        binary = environment("transformers-serve", REQUIREMENTS) / "transformers"
        command = [binary, "serve", "--port", str(port), "--device", "cpu", "--dtype", "bfloat16"]
        threads = {"OMP_NUM_THREADS": str(THREADS)}
        super().__init__("transformers serve", command, port=port, environment=threads)

    def reload(self, folder: Path, prompt: str) -> float:
        """Seconds of letting every model go, loading this one and its first token."""
        began = time.perf_counter()
        self._post("/reset", {})
        body = {"model": str(folder), "prompt": prompt, "max_tokens": 1, "temperature": 0, "stream": False}
        self._post("/v1/completions", body)
        return time.perf_counter() - began

    def _post(self, path: str, body: object) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
            response = connection.getresponse()
            text = response.read().decode(errors="replace")
            if response.status != 200:
                raise self.failed(f"answered {path} with {response.status}: {text[:300]}")
        finally:
            connection.close()
