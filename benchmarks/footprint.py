"""Memory of each engine with its weights loaded, after 16 users were served; one after the other, each alone."""

from __future__ import annotations

import random

from figures import table
from peers import conversions, llamacpp
from peers.contender import Contender
from peers.pool import Pool, Start
from rows import WIDTHS, llama_server, own_server, users16, vllm_server

MIB = 2**20
KINDS = ("pss", "rss", "anonymous", "file")
TITLES = ("proportional", "resident, processes added", "private (anonymous)", "mapped files")


def run() -> str:
    """The `memory` row, as Markdown."""
    rows = []
    for start in EVERYBODY:
        with Pool() as pool:
            contender = pool.started(start)
            if contender is not None:
                users16(contender, random.Random(0))
                sizes = contender.memory()
                rows.append([contender.name, *(f"{sizes[kind] / MIB:,.0f}" for kind in KINDS)])
    return "### memory, MiB over all processes after 16 users\n\n" + table(["engine", *TITLES], rows)


def _llama(kind: str) -> Contender:
    return llamacpp.server(conversions.gguf_file(kind), kind)


EVERYBODY = (
    *(Start(own_server, width) for width in WIDTHS),
    *(Start(_llama, kind) for kind in conversions.GGUF_TYPES),
    *(Start(vllm_server, weights) for weights in ("bf16", "W8A8")),
    Start(own_server, "smollm2"),
    Start(llama_server, "smollm2"),
)
