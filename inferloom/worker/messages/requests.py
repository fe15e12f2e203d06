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
    "Resize",
    "SamplingSpec",
    "Spill",
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


class Resize(msgspec.Struct, tag="z", array_like=True):
    """Have so many KV pages; answered by `Resized` with those that there are at once. Where fewer were wanted and too many
    are in use, others follow with the number 0, as pages are released."""

    id: int
    pages: int


class Spill(msgspec.Struct, tag="w", array_like=True):
    """Write the most recently used pages of the prefix cache to the file `path`, at most `max_bytes` of it; answered by
    `Spilled`. No request may be in progress. `owner`: what the file is to say it belongs to."""

    id: int
    path: str
    owner: str
    max_bytes: int


class Stop(msgspec.Struct, tag="q", array_like=True):
    """End the process now; requests in progress are lost. (Draining is the gateway's business.)"""


ToWorker = Generate | Cancel | Embed | Flush | GetStats | Resize | Spill | Stop
