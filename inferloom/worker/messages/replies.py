"""Worker → gateway."""

from __future__ import annotations

import msgspec

from inferloom.engine.messages import Logprob, Rejected, SequenceStep, Stats
from inferloom.types import ModelCard

__all__ = [
    "Embedded",
    "Failed",
    "FromWorker",
    "Logprob",
    "Progress",
    "Ready",
    "Rejected",
    "Resized",
    "SequenceStep",
    "Spilled",
    "Stats",
    "Step",
]


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


class Step(msgspec.Struct, tag="t", array_like=True):
    """One message per engine step: the new tokens of all its sequences."""

    sequences: list[SequenceStep]


class Embedded(msgspec.Struct, tag="d", array_like=True):
    """float32 little-endian rows, one for each prompt."""

    id: int
    dimensions: int
    data: bytes


class Resized(msgspec.Struct, tag="z", array_like=True):
    """How many KV pages there are now, and the longest context (tokens) that they allow. `id` 0: unasked."""

    id: int
    pages: int
    max_model_len: int


class Spilled(msgspec.Struct, tag="w", array_like=True):
    """How many pages were written, and the bytes of the file; none: there was nothing to keep, or no room."""

    id: int
    pages: int
    bytes: int


FromWorker = Progress | Ready | Failed | Step | Rejected | Embedded | Stats | Resized | Spilled
