"""llama.cpp in its own environment: `xllama.py FILE.gguf [--port P]`, in process or, with a port, as its HTTP server."""

from __future__ import annotations

import argparse
import json
import threading
from typing import Any

import xllamacpp
from loop import protocol, serve

THREADS = 2
REQUESTS = 16


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--context", type=int, default=8192)
    given = parser.parse_args()
    answers = protocol()
    server = xllamacpp.Server(parameters(given.file, given.port, given.context))
    if given.port:
        threading.Event().wait()
    serve(lambda prompts, tokens: complete(server, prompts, tokens), answers)


def parameters(file: str, port: int, context: int) -> Any:
    """16 requests at a time over one KV cache; nothing of a prompt is kept for the next one."""
    params = xllamacpp.CommonParams()
    params.model.path = file
    params.n_parallel = REQUESTS
    params.n_ctx = context
    params.kv_unified = True
    params.cpuparams.n_threads = THREADS
    params.cpuparams_batch.n_threads = THREADS
    params.cache_prompt = False
    params.cache_ram_mib = 0
    params.warmup = True
    params.port = port
    return params


def complete(server: Any, prompts: list[list[int]], tokens: int) -> None:
    counts: list[int] = []

    def one(prompt: list[int]) -> None:
        body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        pieces: list[Any] = []
        server.handle_completions(body | {"cache_prompt": False}, pieces.append)
        last = pieces[-1]
        last = json.loads(last) if isinstance(last, (bytes, str)) else last
        last = last[-1] if isinstance(last, list) else last
        counts.append(last["usage"]["completion_tokens"])

    threads = [threading.Thread(target=one, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [tokens] * len(prompts), f"{counts} tokens"


if __name__ == "__main__":
    main()
