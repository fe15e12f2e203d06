"""A small model that drafts for a larger one.

Its KV pages have the numbers of the larger model's, so page tables, prefix cache, copies and preemption are one thing
for both. It may lag behind (`Sequence.followed`): what it has not seen of a sequence it computes with the next draft.
A page that another sequence takes over from the prefix cache may then hold less of the draft model than it seems to;
that makes a draft worse, never an answer.

It draws with the position's own random number, as the larger model does afterwards: where the two distributions are
alike, so are the draws, at any temperature.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from inferloom.engine.draws import Draw
from inferloom.engine.sampler import sample
from inferloom.engine.sequence import Sequence as Decoding
from inferloom.engine.speculation import Average, common_length
from inferloom.engine.speculator import MOST_ROWS, Speculator, forced_tokens, permitted
from inferloom.models.batch import PAGE_SIZE, Executor, RaggedBatch

PROBE_STEPS = (
    64  # without drafts, after which two tokens are drafted all the same, to see whether they hold now
)


class ModelSpeculator(Speculator):
    """`executor` has the same vocabulary as the model that it drafts for, for the tokens of texts: beyond them, one of the two
    may be padded further than the other."""

    def __init__(
        self,
        executor: Executor,
        *,
        pages: int,
        vocab_size: int,
        most: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Allocates `pages` pages of KV (raises `OutOfMemory`). `vocab_size`: of the larger model."""
        super().__init__(most=most)
        executor.allocate_kv(pages)
        self._executor = executor
        self._vocab_size = vocab_size
        self._longest = executor.card.max_model_len
        self._clock = clock
        self._round = Average()  # seconds that one token of all drafts takes
        self._idle = 0  # steps without drafts

    def copy_page(self, source: int, target: int) -> None:
        self._executor.copy_page(source, target)

    def follow(self, chunks: Sequence[tuple[Decoding, int]]) -> None:
        batch = RaggedBatch([], [], [0], [], [], [])
        for sequence, count in chunks:
            end = sequence.computed + count
            if count > 1 and end <= self._longest:
                _add(batch, sequence, sequence.tokens, start=sequence.followed, end=end)
                sequence.followed = end
        if batch.token_ids:
            self._forward(batch)

    def propose(
        self,
        decoding: Sequence[Decoding],
        *,
        rows: int,
        room: int,
        reserve: Callable[[Decoding, int], int],
    ) -> None:
        room = min(room, MOST_ROWS)
        hopeful: list[Decoding] = []
        chances: list[float] = []
        for sequence, foresight, limit in self._candidates(decoding):
            if forced := forced_tokens(sequence, min(limit, room)):
                foresight.forced = True
                sequence.draft = forced[: reserve(sequence, len(forced))]
                room -= len(sequence.draft)
            elif len(sequence.tokens) + limit <= self._longest:
                hopeful.append(sequence)
                chances.append(foresight.acceptance.chance)
        if not hopeful:
            return
        length = common_length(
            chances,
            most=min(self._most, room // len(hopeful)),
            rows=rows,
            seconds=self._costs.seconds,
            drafting=self._round.value,
        )
        self._idle = 0 if length else self._idle + 1
        if self._idle > PROBE_STEPS and room >= 2 * len(hopeful):
            self._idle, length = 0, 2
        if length:
            counts = [reserve(sequence, min(length, self._limit(sequence))) for sequence in hopeful]
            self._draft([(s, count) for s, count in zip(hopeful, counts, strict=True) if count > 0])

    def settle(self, sequence: Decoding, token: int, accepted: int) -> None:
        super().settle(sequence, token, accepted)
        sequence.followed = min(sequence.followed, sequence.computed + accepted)

    def _forward(self, batch: RaggedBatch) -> torch.Tensor:
        """Logits of the larger model's width. A token that the smaller one does not know stands for none in particular,
        which makes a draft worse, never an answer."""
        known, wanted = self._executor.vocab_size, self._vocab_size
        if known == wanted:
            return self._executor.forward(batch)
        if known < wanted:
            batch = replace(batch, token_ids=[token if token < known else 0 for token in batch.token_ids])
        logits = self._executor.forward(batch)
        if known > wanted:
            return logits[:, :wanted].contiguous()
        return torch.nn.functional.pad(logits, (0, wanted - known), value=-math.inf)

    def _draft(self, wanted: list[tuple[Decoding, int]]) -> None:
        """One token for each sequence and round, until it has what it is to get, or drafts an end."""
        began, rounds = self._clock(), 0
        while wanted:
            batch = RaggedBatch([], [], [0], [], [], [])
            draws = []
            for row, (sequence, _) in enumerate(wanted):
                tokens, draft = sequence.tokens, sequence.draft
                if draft:
                    at = len(tokens) + len(draft) - 1
                    _add(batch, sequence, draft, start=at, end=at + 1, offset=len(tokens))
                else:
                    _add(batch, sequence, tokens, start=sequence.followed, end=len(tokens))
                sequence.followed = len(tokens) + len(draft)
                batch.logit_rows.append(len(batch.token_ids) - 1)
                draws.append(
                    Draw(
                        row=row,
                        sampling=sequence.request.spec.sampling,
                        choice=sequence.choice,
                        position=len(tokens) + len(draft),
                        penalties=sequence.penalties,
                        ahead=list(draft),
                    )
                )
            drawn = sample(self._forward(batch), draws)
            going: list[tuple[Decoding, int]] = []
            for (sequence, count), draw in zip(wanted, drawn, strict=True):
                if 0 <= draw.token < self._vocab_size:
                    sequence.draft.append(draw.token)
                    if len(sequence.draft) < count and draw.token not in sequence.request.stops:
                        going.append((sequence, count))
                if not going or going[-1][0] is not sequence:
                    sequence.draft = permitted(sequence, sequence.draft)
            wanted, rounds = going, rounds + 1
        if rounds:
            self._round.observe((self._clock() - began) / rounds)


def _add(
    batch: RaggedBatch, sequence: Decoding, tokens: Sequence[int], *, start: int, end: int, offset: int = 0
) -> None:
    """Rows for the positions start … end of a sequence, where `tokens` begin at position `offset`."""
    batch.token_ids.extend(tokens[start - offset : end - offset])
    batch.positions.extend(range(start, end))
    batch.starts.append(len(batch.token_ids))
    batch.context_lens.append(end)
    batch.page_tables.append(sequence.pages[: -(-end // PAGE_SIZE)])
