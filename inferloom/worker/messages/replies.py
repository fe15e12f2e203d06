"""Worker → gateway."""

from __future__ import annotations

import msgspec

from inferloom.types import FinishReason, ModelCard

# one token's logprobs: (logprob of the chosen token or None, [(token id, logprob), …] best first)
Logprob = tuple[float | None, list[tuple[int, float]]]


class Progress(msgspec.Struct, tag="p", array_like=True):
    stage: str
    fraction: float | None = None


class Ready(msgspec.Struct, tag="r", array_like=True):
    """The model can answer. `stages`: seconds of each stage of the load."""

    card: ModelCard
    stages: dict[str, float]


class Failed(msgspec.Struct, tag="x", array_like=True):
    """The load failed, or the worker gives up; the process ends after it. `kind`: a code of `errors.py`."""

    kind: str
    message: str


class SequenceStep(msgspec.Struct, array_like=True, gc=False):
    """What one choice gained in a step. A stop token is not among `tokens`.

    `prompt_logprobs` (one per prompt token, the first without a value) and `cached_tokens` come with a choice's
    first step.
    """

    id: int
    choice: int
    tokens: list[int]
    finish: FinishReason | None = None
    logprobs: list[Logprob] | None = None
    prompt_logprobs: list[Logprob] | None = None
    cached_tokens: int = 0


class Step(msgspec.Struct, tag="t", array_like=True):
    """One message per engine step: the new tokens of all its sequences."""

    sequences: list[SequenceStep]


class Rejected(msgspec.Struct, tag="j", array_like=True):
    """A request that cannot be run (`kind`: a code of `errors.py`); nothing else follows for its id."""

    id: int
    kind: str
    message: str


class Embedded(msgspec.Struct, tag="d", array_like=True):
    """float32 little-endian rows, one for each prompt."""

    id: int
    dimensions: int
    data: bytes


class Stats(msgspec.Struct, tag="a", array_like=True):
    """Answer to `GetStats` and `Flush`; also sent unasked (id 0) about once a second while there is work."""

    id: int
    running: int = 0
    waiting: int = 0
    pages_total: int = 0
    pages_free: int = 0  # neither in use nor holding cached prefixes
    pages_cached: int = 0  # held by the prefix cache alone: reclaimable
    prompt_tokens: int = 0  # totals since the start
    prompt_tokens_computed: int = 0
    prompt_tokens_cached: int = 0
    generated_tokens: int = 0
    preemptions: int = 0
    steps: int = 0


FromWorker = Progress | Ready | Failed | Step | Rejected | Embedded | Stats
