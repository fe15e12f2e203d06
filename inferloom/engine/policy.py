"""Batch policies: how many prompt tokens a step may take beside the sequences that are decoding.

Every step decodes one token for each running sequence. Prompt tokens in the same step make it longer, and whoever
decodes waits for them, so the policies trade throughput and the first token of new requests against the pace of those
under way:

- `greedy`   fills every step up to max_batch_tokens: highest throughput, longest pauses.
- `eager`    takes at most 256 prompt tokens while anything decodes, 2048 otherwise: short, even steps whatever the
             machine.
- `adaptive` (the default) measures what a prompt token costs here and takes as many as keep a step near 0.25 s while
             anything decodes, 1 s otherwise (a cancellation takes effect between steps).
"""

from __future__ import annotations

from typing import Literal, Protocol

PolicyName = Literal["adaptive", "eager", "greedy"]


class BatchPolicy(Protocol):
    def prompt_tokens(self, decoding: int) -> int:
        """The most prompt tokens of the next step, in which `decoding` sequences decode."""
        ...

    def observe(self, *, prompt_tokens: int, decoding: int, seconds: float) -> None:
        """How long a step took."""
        ...


class Greedy:
    def prompt_tokens(self, decoding: int) -> int:
        return 1 << 30

    def observe(self, *, prompt_tokens: int, decoding: int, seconds: float) -> None:
        """Nothing to learn."""


class Eager:
    def prompt_tokens(self, decoding: int) -> int:
        return 256 if decoding else 2048

    def observe(self, *, prompt_tokens: int, decoding: int, seconds: float) -> None:
        """Nothing to learn."""


class Adaptive:
    """`cost`: seconds that one prompt token adds, a moving average; None before the first measurement."""

    BUSY, QUIET = 0.25, 1.0  # seconds of a step with and without decoding sequences
    LEAST = 128  # below this a step's fixed costs outweigh its prompt tokens
    FIRST = 1024  # before anything was measured

    def __init__(self) -> None:
        self.cost: float | None = None

    def prompt_tokens(self, decoding: int) -> int:
        if self.cost is None:
            return self.FIRST
        return max(self.LEAST, int((self.BUSY if decoding else self.QUIET) / self.cost))

    def observe(self, *, prompt_tokens: int, decoding: int, seconds: float) -> None:
        # Short prompts say little: their steps are mostly fixed costs.
        if prompt_tokens < self.LEAST:
            return
        measured = max(seconds / prompt_tokens, 1e-9)
        self.cost = measured if self.cost is None else 0.7 * self.cost + 0.3 * measured


def make_policy(name: PolicyName) -> BatchPolicy:
    """A new policy by its name in the configuration (`batch_policy`)."""
    policies: dict[PolicyName, type[BatchPolicy]] = {"adaptive": Adaptive, "eager": Eager, "greedy": Greedy}
    return policies[name]()
