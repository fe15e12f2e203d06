"""Gateway → worker."""

from __future__ import annotations

import msgspec

from inferloom.engine.messages import Generate, GrammarSpec, SamplingSpec

__all__ = [
    "Cancel",
    "Embed",
    "Flush",
    "Generate",
    "GetStats",
    "GrammarSpec",
    "SamplingSpec",
    "Stop",
    "ToWorker",
]


class Cancel(msgspec.Struct, tag="c", array_like=True):
    """End a request (choice -1) or one of its choices. Nothing is answered; unknown ids are ignored."""

    id: int
    choice: int = -1


class Embed(msgspec.Struct, tag="e", array_like=True):
    """Pooled, normalised embeddings of token sequences (special tokens included)."""

    id: int
    prompts: list[list[int]]


class Flush(msgspec.Struct, tag="f", array_like=True):
    """Drop the prefix cache; answered by `Stats`."""

    id: int


class GetStats(msgspec.Struct, tag="s", array_like=True):
    id: int


class Stop(msgspec.Struct, tag="q", array_like=True):
    """End the process now; requests in progress are lost. (Draining is the gateway's business.)"""


ToWorker = Generate | Cancel | Embed | Flush | GetStats | Stop
