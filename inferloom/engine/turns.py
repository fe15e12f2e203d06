"""Turns: what a step's sequences ask of the sampler, and what their grammars allow."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from inferloom.engine.draws import Draw, Mask
from inferloom.engine.grammar import Masker, Matcher
from inferloom.engine.sequence import Sequence


@dataclass(slots=True)
class Turn:
    """A sequence whose logits are known: they stand in `row`, and `choices` get a token each.

    One choice, or, when the prompt was just computed, all of its request: their first tokens come from one row.
    A choice with a draft has a row for each of its tokens besides.
    """

    sequence: Sequence
    row: int
    choices: list[int]

    @staticmethod
    def of(sequence: Sequence, row: int) -> Turn:
        request = sequence.request
        return Turn(sequence, row, [sequence.choice] if request.forked else sorted(request.live))

    def rows(self) -> list[int]:
        """Of each of its draws."""
        return [self.row + place for _ in self.choices for place in range(1 + len(self.sequence.draft))]

    def draws(self) -> list[Draw]:
        sequence, spec = self.sequence, self.sequence.request.spec
        draft = sequence.draft
        if not draft and len(self.choices) == 1:  # nearly all, and the same as below in a third of the time
            position = len(sequence.tokens)
            return [
                Draw(self.row, spec.sampling, self.choices[0], position, spec.logprobs, sequence.penalties)
            ]
        return [
            Draw(
                row=self.row + place,
                sampling=spec.sampling,
                choice=choice,
                position=len(sequence.tokens) + place,
                logprobs=spec.logprobs,
                penalties=sequence.penalties,
                ahead=draft[:place],
            )
            for choice in self.choices
            for place in range(1 + len(draft))
        ]


def mask_of(turns: Iterable[Turn], masker: Masker) -> Mask | None:
    """The mask of the constrained draws among those of `turns`, in order; None if there are none."""
    draws: list[int] = []  # of the turns that `matchers` stand for
    matchers: list[Matcher] = []
    stops: list[frozenset[int]] = []
    ahead: list[int] = []  # draws of turns with a draft, whose masks follow its tokens
    masks: list[torch.Tensor] = []
    draw = 0
    for turn in turns:
        sequence, count = turn.sequence, len(turn.choices)
        if sequence.draft:
            count = 1 + len(sequence.draft)
        if sequence.matcher is not None:
            if sequence.draft:
                ahead += range(draw, draw + count)
                masks.append(masker.allowed_along(sequence.matcher, sequence.request.stops, sequence.draft))
            else:
                draws += range(draw, draw + count)
                matchers += [sequence.matcher] * count
                stops += [sequence.request.stops] * count
        draw += count
    if matchers:
        masks.insert(0, masker.allowed(matchers, stops))
    if not masks:
        return None
    return Mask(draws + ahead, masks[0] if len(masks) == 1 else torch.cat(masks))
