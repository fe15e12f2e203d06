"""llama.cpp's own tokenizer and answers, through the server that xllamacpp carries."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

Tokenize = Callable[[str, bool], list[int]]

_PIECES = (
    "Hello world", "the quick brown fox", " jumps over", "doesn't", "I'LL", "'re", "1234", "3.14", "٣٤", "½", "ⅷ", "²",
    "\n", "\n\n", "\r\n", "\t", "  ", "   ", "\u00a0", "\u3000", "\u2028", "\u200b", "\x85", "\x1c", "\x00", "\x7f",
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|begin|>", "<s>", "</s>", "<unk>", "<|im_", "🙂", "👨‍👩‍👧", "👍🏽",
    "é", "e\u0301", "naïve", "中文字", "カタ", "한국", "Привет, мир", "ß", "İ", "ǅ", "𝒳", "...", "!?", "_", "§", "def f(x):\n    return x",
)  # fmt: skip


def unicode_texts(count: int, *, seed: int) -> list[str]:
    """Texts of ordinary pieces, low code points and any code point whatever."""
    chance = random.Random(seed)

    def piece() -> str:
        kind = chance.random()
        if kind < 0.35:
            return chance.choice(_PIECES)
        if kind < 0.6:
            return chr(chance.randrange(32, 127))
        code = chance.randrange(0x3000) if kind < 0.85 else chance.randrange(0x110000)
        return " " if 0xD800 <= code < 0xE000 else chr(code)

    return ["".join(piece() for _ in range(chance.randrange(1, 40))) for _ in range(count)]


@contextmanager
def tokenizer(path: Path) -> Iterator[Tokenize]:
    """A function (text, add_special) → ids that asks `/tokenize` of a server that has the file `path` open."""
    with _client(path, context=64, slots=1) as client:

        def tokenize(text: str, add_special: bool) -> list[int]:
            question = {"content": text, "add_special": add_special, "parse_special": True}
            ids: list[int] = _post(client, "/tokenize", question)["tokens"]
            return ids

        yield tokenize


class Completions:
    """What llama.cpp's server says to some sequences of tokens at a time, one slot each."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def greedy(self, prompts: list[list[int]], tokens: int) -> list[list[int]]:
        """The `tokens` likeliest ones after each prompt, one after the other; fewer where the answer ends before."""
        answers = self._complete(prompts, n_predict=tokens, return_tokens=True)
        return [answer["tokens"] for answer in answers]

    def scores(
        self, sequences: list[list[int]], begin: int, *, likeliest: int
    ) -> list[list[dict[int, float]]]:
        """For each sequence: after each of its tokens from `begin` − 1 on, log-probabilities of the likeliest next ones.

        The server tells them of tokens that it makes itself; so each position is asked for by itself, after a prefix that
        the slot has kept from the position before.
        """
        rows: list[list[dict[int, float]]] = [[] for _ in sequences]
        for end in range(begin, len(sequences[0]) + 1):
            answers = self._complete([s[:end] for s in sequences], n_predict=1, n_probs=likeliest)
            for row, answer in zip(rows, answers, strict=True):
                (made,) = answer["completion_probabilities"]
                row.append({each["id"]: each["logprob"] for each in made["top_logprobs"]})
        return rows

    def _complete(self, prompts: list[list[int]], **how: Any) -> list[dict[str, Any]]:
        question = {"prompt": prompts, "temperature": 0, "cache_prompt": True, **how}
        answers: list[dict[str, Any]] = _post(self._client, "/completion", question)
        return sorted(answers, key=lambda answer: int(answer["index"]))


@contextmanager
def completions(path: Path, *, slots: int, context: int) -> Iterator[Completions]:
    """A server that has the file `path` open and takes `slots` sequences of up to `context` tokens at a time."""
    with _client(path, context=slots * context, slots=slots) as client:
        yield Completions(client)


def _post(client: httpx.Client, path: str, question: dict[str, Any]) -> Any:
    answer = client.post(path, json=question)
    answer.raise_for_status()
    return answer.json()


@contextmanager
def _client(path: Path, *, context: int, slots: int) -> Iterator[httpx.Client]:
    import socket

    import xllamacpp

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = xllamacpp.CommonParams()
    settings.model.path = str(path)
    settings.n_ctx = context
    settings.n_parallel = slots
    settings.kv_unified = False
    settings.cpuparams.n_threads = 1  # several would wait for each other's, turning, on cores that others use
    settings.cpuparams_batch.n_threads = 1
    settings.warmup = False
    settings.verbosity = 0
    settings.port = port
    server = xllamacpp.Server(settings)
    with httpx.Client(base_url=server.listening_address, trust_env=False, timeout=60) as client:
        yield client
    del server
