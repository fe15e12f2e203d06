"""Speculators: they give decoding sequences drafts to verify, and learn from what becomes of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence

from inferloom.engine.foresight import Foresight
from inferloom.engine.sequence import Sequence as Decoding
from inferloom.engine.speculation import Acceptance, StepCosts, draft_lengths

FORCED = 0.98  # the chance of a token that a grammar forces: other spellings of the same text remain
MOST_ROWS = 64  # drafted tokens in one step


class Speculator(ABC):
    """What the engine asks of a source of drafts. `most`: tokens of the longest draft."""

    def __init__(self, *, most: int) -> None:
        self._most = most
        self._costs = StepCosts()
        self._overall = Acceptance(window=200)

    @abstractmethod
    def propose(
        self,
        decoding: Sequence[Decoding],
        *,
        rows: int,
        room: int,
        reserve: Callable[[Decoding, int], int],
    ) -> None:
        """Set the `draft` of some of the sequences that a step of `rows` rows decodes: at most `room` tokens in all.

        `reserve(sequence, count)` gets pages for so many drafted tokens and says how many fit.
        """

    def follow(self, chunks: Sequence[tuple[Decoding, int]]) -> None:  # noqa: B027 - a lookup has nothing to do
        """The step computes so many tokens of these sequences, prompts among them."""

    def copy_page(self, source: int, target: int) -> None:  # noqa: B027
        """A page of the KV pool was copied."""

    def settle(self, sequence: Decoding, token: int, accepted: int) -> None:
        """`token` was sampled first for a sequence of `propose`, and `accepted` tokens of its draft held."""
        foresight, drafted = sequence.foresight, len(sequence.draft)
        if foresight is None or foresight.forced:  # a grammar's success says nothing about the text
            return
        if not drafted and foresight.next >= 0:  # what a draft would have done costs nothing to know
            drafted, accepted = 1, int(token == foresight.next)
        if drafted:
            foresight.acceptance.observe(drafted, accepted)
            self._overall.observe(drafted, accepted)

    def observe(self, rows: int, seconds: float) -> None:
        """How long a step without prompts took, from its forward pass on."""
        self._costs.observe(rows, seconds)

    def _candidates(self, decoding: Sequence[Decoding]) -> Iterator[tuple[Decoding, Foresight, int]]:
        """The sequences for which a draft can still matter, what is foreseen of them, and their longest draft."""
        for sequence in decoding:
            if sequence.foresight is None:
                sequence.foresight = Foresight(Acceptance(self._overall.chance))
            sequence.foresight.forced, sequence.foresight.next = False, -1
            if (limit := self._limit(sequence)) > 0:
                yield sequence, sequence.foresight, limit

    def _limit(self, sequence: Decoding) -> int:
        """The longest draft that can still matter: the token after it is sampled in the same step."""
        return min(self._most, sequence.request.spec.max_tokens - sequence.generated - 1)


class LookupSpeculator(Speculator):
    """Prompt lookup for every sequence, and forced tokens for those with a grammar."""

    def propose(
        self,
        decoding: Sequence[Decoding],
        *,
        rows: int,
        room: int,
        reserve: Callable[[Decoding, int], int],
    ) -> None:
        hopeful: list[Decoding] = []
        drafts: list[list[int]] = []
        chances: list[float] = []
        for sequence, foresight, limit in self._candidates(decoding):
            draft, chance = self._draft(sequence, foresight, limit)
            if draft:
                hopeful.append(sequence)
                drafts.append(draft)
                chances.append(chance)
        if not hopeful:
            return
        lengths = draft_lengths(
            chances,
            [len(draft) for draft in drafts],
            rows=rows,
            room=min(room, MOST_ROWS),
            seconds=self._costs.seconds,
        )
        for sequence, draft, length in zip(hopeful, drafts, lengths, strict=True):
            if length:
                sequence.draft = draft[: reserve(sequence, length)]

    def _draft(self, sequence: Decoding, foresight: Foresight, limit: int) -> tuple[list[int], float]:
        """A sequence's draft, none of its tokens an end, and the chance of each of them."""
        foresight.index.update(sequence.tokens)
        if forced := forced_tokens(sequence, limit):
            foresight.forced = True
            return forced, FORCED
        draft = permitted(sequence, foresight.index.draft(sequence.tokens, limit))
        if draft:
            foresight.next = draft[0]
        return draft, foresight.acceptance.chance


def forced_tokens(sequence: Decoding, limit: int) -> list[int]:
    """Up to `limit` tokens that a sequence's grammar leaves no choice about."""
    matcher = sequence.matcher
    return [] if matcher is None else _before(matcher.ends, matcher.forced()[:limit])


def permitted(sequence: Decoding, draft: list[int]) -> list[int]:
    """What of a draft can be text of a sequence: nothing from its first end on, nothing that its grammar forbids."""
    draft = _before(sequence.request.stops, draft)
    if draft and sequence.matcher is not None:
        draft = _before(sequence.matcher.ends, draft[: sequence.matcher.count_allowed(draft)])
    return draft


def _before(ends: frozenset[int], draft: list[int]) -> list[int]:
    if ends.isdisjoint(draft):
        return draft
    return draft[: next(i for i, token in enumerate(draft) if token in ends)]
