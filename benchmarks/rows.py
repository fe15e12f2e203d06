"""The rows that `cpu.py` runs: what is measured, who is compared, and what we want of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from peers import conversions, llamacpp, openvino, own, vllm
from peers.contender import Contender, HttpContender, Prompts
from peers.pool import Start

from inferloom.formats.layout import HALVES_LOWER, HALVES_UPPER, Layout, packed_bytes
from inferloom.formats.packed_file import packed_entries
from inferloom.formats.prepare import locate
from inferloom.formats.safetensors_file import read_header

VOCABULARY = range(300, 49000)  # ids that both checkpoints have, none of them special
DECODE_PROMPT, DECODE_TOKENS = 32, 64
PREFILL = 512
USERS, USER_PROMPT, USER_TOKENS = 16, 128, 64
RELOAD_PROMPT = 32
WIDTHS = ("bf16", "int8", "int4")

Measure = Callable[[Contender, random.Random], float]


def decode(contender: Contender, draw: random.Random) -> float:
    """Tokens per second of one user: a long answer's time less a one-token answer's leaves the prompt out."""
    one = contender.complete(_prompts(draw, 1, DECODE_PROMPT), 1)
    many = contender.complete(_prompts(draw, 1, DECODE_PROMPT), 1 + DECODE_TOKENS)
    return DECODE_TOKENS / max(many - one, 1e-9)


def prefill(contender: Contender, draw: random.Random) -> float:
    """Tokens per second of a prompt, its one-token answer included."""
    return PREFILL / contender.complete(_prompts(draw, 1, PREFILL), 1)


def users16(contender: Contender, draw: random.Random) -> float:
    """Tokens per second that 16 users get together, their prompts' time included."""
    return USERS * USER_TOKENS / contender.complete(_prompts(draw, USERS, USER_PROMPT), USER_TOKENS)


def reload(contender: Contender, draw: random.Random) -> float:
    """Seconds of unload, reload and the first token of a short prompt, one after the other."""
    assert isinstance(contender, HttpContender)
    prompt = _prompts(draw, 1, RELOAD_PROMPT)[0]
    return contender.timed_reload(prompt)


MEASURES: dict[str, Measure] = {"decode": decode, "prefill": prefill, "users16": users16, "reload": reload}


# The memory's bandwidth changes every few seconds on a shared machine: short turns and many of them let both sides of a
# pair meet the same.
REPEATS = {"decode": 15, "prefill": 11, "users16": 5, "reload": 11}


@dataclass(frozen=True)
class Row:
    """One cell of the table. A ratio to the best peer where there are peers, otherwise seconds."""

    name: str
    measure: Measure
    ours: Start
    peers: tuple[Start, ...]
    floor: float
    goal: float
    repeats: int
    # bytes that a step reads, for those rows that say what share of the memory's bandwidth that is
    weights: Callable[[], int] | None = None

    @property
    def contenders(self) -> tuple[Start, ...]:
        """Ours, then the peers. Equal ones of several rows are one and the same process."""
        return (self.ours, *self.peers)

    @property
    def is_ratio(self) -> bool:
        return bool(self.peers)


# floor, goal
TARGETS: dict[str, tuple[float, float]] = {
    "bf16-decode": (1.0, 1.1),
    "bf16-prefill": (0.9, 1.0),
    "bf16-users16": (1.0, 1.2),
    "bf16-reload": (0.4, 0.2),
    "int8-decode": (1.2, 1.4),
    "int8-prefill": (0.95, 1.15),
    "int8-users16": (1.1, 1.4),
    "int8-reload": (0.25, 0.12),
    "int4-decode": (1.6, 2.2),
    "int4-prefill": (0.85, 1.0),
    "int4-users16": (1.25, 1.5),
    "int4-reload": (0.25, 0.12),
    "smollm2-decode": (2.3, 3.3),
    "smollm2-prefill": (5.5, 8.0),
    "smollm2-users16": (5.5, 9.0),
    "smollm2-reload": (0.15, 0.08),
}
BANDWIDTH_SHARE = 0.85  # of bf16-decode; of the others it is said and no goal


def row(name: str) -> Row:
    """The row of that name in `TARGETS`."""
    model, _, kind = name.partition("-")
    floor, goal = TARGETS[name]
    over_http = model == "smollm2" or kind in ("users16", "reload")
    return Row(
        name,
        MEASURES[kind],
        ours=Start(own_server if over_http else _own_engine, model),
        peers=() if kind == "reload" else _peers(model, kind),
        floor=floor,
        goal=goal,
        repeats=REPEATS[kind],
        weights=partial(weight_bytes, model) if kind == "decode" and model in WIDTHS else None,
    )


def _peers(model: str, kind: str) -> tuple[Start, ...]:
    """The best peers of a cell; several where earlier runs had them close together. vLLM's W8A8 is its fastest way on a CPU,
    faster than its 4-bit weights."""
    if model == "smollm2":
        return (Start(llama_server, model),)
    weights = "bf16" if model == "bf16" else "W8A8"
    candidates = {
        "decode": (Start(_llama, model),)
        if model == "int4"
        else (Start(_llama, model), Start(_vllm, weights)),
        "prefill": (Start(_vllm, weights),),
        "users16": (Start(vllm_server, weights),),
    }
    return candidates[kind] + ((Start(_openvino, "fp16"),) if model == "bf16" else ())


def own_server(model: str) -> Contender:
    """Ours: smollm2 as it is, or the random checkpoint at a width."""
    if model == "smollm2":
        return own.server(model, None)
    return own.server(str(conversions.checkpoint()), model)


def _own_engine(model: str) -> Contender:
    return own.in_process(str(conversions.checkpoint()), model)


def llama_server(model: str) -> Contender:
    """llama.cpp on the very file that ours reads."""
    return llamacpp.server(conversions.smollm2_file(), f"Q4_1 {model}")


def _llama(width: str) -> Contender:
    kind = llamacpp.KINDS[width]
    return llamacpp.in_process(conversions.gguf_file(kind), kind)


def vllm_server(weights: str) -> Contender:
    """vLLM with bf16 or W8A8 weights."""
    return vllm.server(_vllm_folder(weights), weights)


def _vllm(weights: str) -> Contender:
    return vllm.in_process(_vllm_folder(weights), weights)


def _openvino(weights: str) -> Contender:
    return openvino.in_process(conversions.openvino_folder(), weights)


def _vllm_folder(weights: str) -> Path:
    return conversions.checkpoint() if weights == "bf16" else conversions.w8a8_folder()


def weight_bytes(width: str, *, whole: bool = False) -> int:
    """Of the random checkpoint, as a greedy token reads them; `whole`: as a step does that wants all logits."""
    found = locate(str(conversions.checkpoint()), quantization=own.SCHEMES[width])
    assert found is not None, "our side has packed it before this is asked"
    return sum(Path(file).stat().st_size - (0 if whole else left_out(Path(file))) for file in found.weights)


def left_out(file: Path) -> int:
    """Bytes of a file that a greedy token does not read: lower halves of the output matrix (all but some 1 %)."""
    entries = packed_entries(read_header(file), file.name).values()
    return sum(
        packed_bytes(shape, layout) * HALVES_LOWER // (HALVES_UPPER + HALVES_LOWER)
        for layout, shape in entries
        if layout is Layout.Q8_HALVES
    )


def _prompts(draw: random.Random, count: int, length: int) -> Prompts:
    return [draw.choices(VOCABULARY, k=length) for _ in range(count)]
