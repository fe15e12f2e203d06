"""llama.cpp's own tokenizer, through the server that xllamacpp carries."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

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
    import socket

    import xllamacpp

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = xllamacpp.CommonParams()
    settings.model.path = str(path)
    settings.n_ctx = 64
    settings.n_parallel = 1
    settings.cpuparams.n_threads = 1
    settings.warmup = False
    settings.port = port
    server = xllamacpp.Server(settings)
    with httpx.Client(base_url=server.listening_address, trust_env=False, timeout=30) as client:

        def tokenize(text: str, add_special: bool) -> list[int]:
            question = {"content": text, "add_special": add_special, "parse_special": True}
            answer = client.post("/tokenize", json=question)
            answer.raise_for_status()
            ids: list[int] = answer.json()["tokens"]
            return ids

        yield tokenize
    del server
