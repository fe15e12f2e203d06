"""Memory of each engine with its weights loaded, after 16 users were served; one after the other, each alone."""

from __future__ import annotations

import random
import sys

from figures import table
from peers import conversions, llamacpp, own, vllm
from peers.contender import Contender
from rows import WIDTHS, Start, users16

MIB = 2**20
KINDS = ("pss", "rss", "anonymous", "file")
TITLES = ("proportional", "resident, processes added", "private (anonymous)", "mapped files")


def run() -> str:
    """The `memory` row, as Markdown."""
    rows = []
    for start in _everybody():
        contender = start()
        print(f"starting {contender.name}", file=sys.stderr, flush=True)
        try:
            with contender:
                users16(contender, random.Random(0))
                sizes = contender.memory()
            rows.append([contender.name, *(f"{sizes[kind] / MIB:,.0f}" for kind in KINDS)])
        except RuntimeError as error:
            print(f"not compared: {error}", file=sys.stderr, flush=True)
    return "### memory, MiB over all processes after 16 users\n\n" + table(["engine", *TITLES], rows)


def _everybody() -> list[Start]:
    source = conversions.checkpoint

    def ours(width: str) -> Start:
        return lambda: own.server(str(source()), width)

    def llama(kind: str) -> Start:
        return lambda: llamacpp.server(conversions.gguf_file(kind), kind)

    peers: list[Start] = [llama(kind) for kind in conversions.GGUF_TYPES]
    peers.append(lambda: vllm.server(source(), "bf16"))
    peers.append(lambda: vllm.server(conversions.w8a8_folder(), "W8A8"))
    smollm2: list[Start] = [lambda: own.server("smollm2", None), _llama_smollm2]
    return [*(ours(width) for width in WIDTHS), *peers, *smollm2]


def _llama_smollm2() -> Contender:
    return llamacpp.server(conversions.smollm2_file(), "Q4_1 smollm2")
