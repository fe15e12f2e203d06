"""Sampling with every default resolved: the request's value, else the checkpoint's, else OpenAI's."""

from __future__ import annotations

from hashlib import blake2b

from inferloom.text.tokenizer_files import GenerationDefaults
from inferloom.types import Sampling
from inferloom.worker.messages.requests import SamplingSpec

_MASK = (1 << 64) - 1


def resolve(asked: Sampling, defaults: GenerationDefaults, *, seed: int) -> SamplingSpec:
    """What the engine is told. `seed` stands in where the request has none."""
    return SamplingSpec(
        temperature=_first(asked.temperature, defaults.temperature, 1.0),
        top_p=_first(asked.top_p, defaults.top_p, 1.0),
        top_k=max(0, int(_first(asked.top_k, defaults.top_k, 0))),  # −1 means off as well
        min_p=_first(asked.min_p, defaults.min_p, 0.0),
        presence_penalty=asked.presence_penalty or 0.0,
        frequency_penalty=asked.frequency_penalty or 0.0,
        repetition_penalty=_first(asked.repetition_penalty, defaults.repetition_penalty, 1.0),
        logit_bias=asked.logit_bias or None,
        seed=(seed if asked.seed is None else asked.seed) & _MASK,
    )


def fresh_seed(random_seed: int, boot: bytes, number: int) -> int:
    """A seed of its own for every request of every start: 64 bits of hash(random_seed, boot id, request number)."""
    digest = blake2b(b"%d:%s:%d" % (random_seed, boot, number), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _first(asked: float | None, default: float | None, otherwise: float) -> float:
    if asked is not None:
        return asked
    return otherwise if default is None else default
