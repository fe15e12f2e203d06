"""What the sampler is asked and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from inferloom.engine.messages import Logprob, SamplingSpec
from inferloom.engine.penalties import Penalties


@dataclass(slots=True)
class Draw:
    """One token to sample: from which row of the logits, how, and with which random number.

    `ahead`: the drafted tokens that this draw takes for granted, which `penalties` have not seen.
    """

    row: int
    sampling: SamplingSpec
    choice: int
    position: int
    logprobs: int = -1
    penalties: Penalties | None = None
    ahead: Sequence[int] = ()


@dataclass(slots=True)
class Mask:
    """What grammars allow: bool [len(draws), vocab], True is allowed; `draws` are indices into the list of draws."""

    draws: list[int]
    allowed: torch.Tensor


@dataclass(slots=True)
class Sampled:
    """`token` is −1 if the row has no valid distribution (NaN, or nothing allowed)."""

    token: int
    logprob: Logprob | None = None
