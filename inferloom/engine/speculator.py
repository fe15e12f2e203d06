"""The speculator: gives decoding sequences drafts to verify, and learns from what becomes of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from inferloom.engine.drafts import NgramIndex
from inferloom.engine.sequence import Sequence as Decoding
from inferloom.engine.speculation import Acceptance, StepCosts, draft_lengths

FORCED = 0.98  # the chance of a token that a grammar forces: other spellings of the same text remain
MOST_ROWS = 64  # drafted tokens in one step


@dataclass(slots=True)
class Foresight:
    """What is known of one sequence's future. `forced`: a grammar forces the draft under way; `next`: the token that
    the index foresees, whether or not it was worth a row (−1: none)."""

    acceptance: Acceptance
    index: NgramIndex = field(default_factory=NgramIndex)
    forced: bool = False
    next: int = -1


class Speculator:
    """Prompt lookup for every sequence, forced tokens for those with a grammar.

    `most`: the longest draft.
    """

    def __init__(self, *, most: int) -> None:
        self._most = most
        self._costs = StepCosts()
        self._overall = Acceptance(window=200)

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
        hopeful: list[Decoding] = []
        drafts: list[list[int]] = []
        chances: list[float] = []
        for sequence in decoding:
            draft, chance = self._draft(sequence)
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

    def settle(self, sequence: Decoding, token: int, accepted: int) -> None:
        """`token` was sampled first for a sequence of `propose`, and `accepted` tokens of its draft held."""
        foresight, drafted = sequence.foresight, len(sequence.draft)
        if foresight is None:
            return
        if foresight.forced:  # says nothing about the lookup
            return
        if not drafted and foresight.next >= 0:  # what a draft would have done costs nothing to know
            drafted, accepted = 1, int(token == foresight.next)
        if drafted:
            foresight.acceptance.observe(drafted, accepted)
            self._overall.observe(drafted, accepted)

    def observe(self, rows: int, seconds: float) -> None:
        """How long a step without prompts took."""
        self._costs.observe(rows, seconds)

    def _draft(self, sequence: Decoding) -> tuple[list[int], float]:
        """A sequence's draft, none of its tokens an end, and the chance of each of them."""
        request = sequence.request
        foresight = sequence.foresight
        if foresight is None:
            foresight = sequence.foresight = Foresight(Acceptance(self._overall.chance))
        foresight.forced, foresight.next = False, -1
        limit = min(self._most, request.spec.max_tokens - sequence.generated - 1)
        if limit < 1:
            return [], 0.0
        foresight.index.update(sequence.tokens)
        matcher = sequence.matcher
        if matcher is not None and (forced := _before(matcher.ends, matcher.forced()[:limit])):
            foresight.forced = True
            return forced, FORCED
        draft = _before(request.stops, foresight.index.draft(sequence.tokens, limit))
        if matcher is not None and draft:
            draft = _before(matcher.ends, draft[: matcher.count_allowed(draft)])
        if draft:
            foresight.next = draft[0]
        return draft, foresight.acceptance.chance


def _before(ends: frozenset[int], draft: list[int]) -> list[int]:
    """What of a draft stands before its first end: nothing comes after it, and it is no text to be kept."""
    if ends.isdisjoint(draft):
        return draft
    return draft[: next(i for i, token in enumerate(draft) if token in ends)]
