"""Turns: what a step's sequences ask of the sampler, and what their grammars allow."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from inferloom.engine.grammar import Masker, Matcher
from inferloom.engine.sampler import Draw, Mask
from inferloom.engine.sequence import Sequence


@dataclass(slots=True)
class Turn:
    """A sequence whose logits are known: they stand in `row`, and `choices` get a token each.

    One choice, or, when the prompt was just computed, all of its request: their first tokens come from one row.
    """

    sequence: Sequence
    row: int
    choices: list[int]

    @staticmethod
    def of(sequence: Sequence, row: int) -> Turn:
        request = sequence.request
        return Turn(sequence, row, [sequence.choice] if request.forked else sorted(request.live))

    def draws(self) -> list[Draw]:
        sequence, spec = self.sequence, self.sequence.request.spec
        return [
            Draw(
                row=self.row,
                sampling=spec.sampling,
                choice=choice,
                position=len(sequence.tokens),
                logprobs=spec.logprobs,
                penalties=sequence.penalties,
            )
            for choice in self.choices
        ]


def mask_of(turns: Iterable[Turn], masker: Masker) -> Mask | None:
    """The mask of the constrained draws among those of `turns`, in order; None if there are none."""
    draws: list[int] = []
    matchers: list[Matcher] = []
    stops: list[frozenset[int]] = []
    draw = 0
    for turn in turns:
        count = len(turn.choices)
        if turn.sequence.matcher is not None:
            draws += range(draw, draw + count)
            matchers += [turn.sequence.matcher] * count
            stops += [turn.sequence.request.stops] * count
        draw += count
    return Mask(draws, masker.allowed(matchers, stops)) if draws else None
