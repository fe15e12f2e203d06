"""A sequence: the tokens of one choice, the pages that hold them, and how far it has come."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from inferloom.engine.messages import Generate, Logprob

if TYPE_CHECKING:
    from inferloom.engine.foresight import Foresight
    from inferloom.engine.grammar import Matcher
    from inferloom.engine.penalties import Penalties

PRIORITY_STEPS = 1000  # one unit of priority is worth this many engine steps of waiting


@dataclass(eq=False, slots=True)
class Request:
    """What the choices of one `Generate` share."""

    spec: Generate
    arrival: int  # engine step at which it came
    number: int  # order of arrival
    stops: frozenset[int]
    live: set[int]  # choices neither finished nor cancelled
    sequences: list[Sequence] = field(default_factory=list)
    forked: bool = False  # the prompt is computed and every choice has its own sequence
    cached_tokens: int | None = None  # of the prompt, known when its first page table is made
    prompt_logprobs: list[Logprob] | None = None

    @property
    def id(self) -> int:
        return self.spec.id


@dataclass(eq=False, slots=True)
class Sequence:
    """One choice; before the prompt is computed, the first sequence stands for all choices of its request.

    Invariants: `0 ≤ computed < len(tokens)` between steps; `pages` cover at least `computed` tokens; keys[i] is the
    prefix-cache key of pages[i] for the pages that are full and computed.
    """

    request: Request
    choice: int
    tokens: list[int]  # prompt, then what was generated
    computed: int = 0  # tokens whose keys and values are in pages
    pages: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    matcher: Matcher | None = None
    penalties: Penalties | None = None
    draft: list[int] = field(
        default_factory=list
    )  # tokens to verify in the step under way; empty between steps
    followed: int = 0  # tokens whose keys and values the draft model has
    foresight: Foresight | None = None  # the speculator's, from the first decode on

    @property
    def rank(self) -> tuple[int, int, int]:
        """The order of service, smallest first: arrival, moved ahead by priority.

        A fixed value: whoever waits is overtaken by a bounded number of others, so nobody starves.
        """
        request = self.request
        return (request.arrival - request.spec.priority * PRIORITY_STEPS, request.number, self.choice)

    @property
    def priority(self) -> int:
        return self.request.spec.priority

    @property
    def prompt_len(self) -> int:
        return len(self.request.spec.prompt)

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_len

    @property
    def remaining(self) -> int:
        """Tokens that must be computed before the next one can be sampled: 1 means decoding."""
        return len(self.tokens) - self.computed

    @property
    def takes_best(self) -> bool:
        """Whether its next token is the likeliest one, and nothing is asked about the others."""
        spec = self.request.spec
        sampling = spec.sampling
        plain = self.penalties is None and self.matcher is None and not sampling.logit_bias
        return plain and sampling.temperature <= 0 and spec.logprobs < 0 and not self.awaits_prompt_logprobs

    @property
    def awaits_prompt_logprobs(self) -> bool:
        logprobs = self.request.prompt_logprobs
        return logprobs is not None and len(logprobs) < self.prompt_len

    @property
    def first_logit(self) -> int:
        """First position whose logits are wanted: the last one, or an earlier one of a prompt that is scored."""
        if self.awaits_prompt_logprobs:
            assert self.request.prompt_logprobs is not None
            return len(self.request.prompt_logprobs) - 1
        return len(self.tokens) - 1
