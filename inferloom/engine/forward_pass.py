"""A forward pass: the plan's chunks as one ragged batch, and which rows of its logits are whose."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from inferloom.engine.sequence import Sequence
from inferloom.models.batch import PAGE_SIZE, Executor, RaggedBatch


@dataclass(slots=True)
class ScoredSpan:
    """Rows `first` … `first + count` of the logits belong to positions `position` … of a prompt that is scored."""

    sequence: Sequence
    first: int
    position: int
    count: int


@dataclass(slots=True)
class ForwardPass:
    """`ready`: the sequences that get a token, each with its row of the logits; those of its draft follow. `best_only`: of
    each row nothing but the greatest logit matters."""

    batch: RaggedBatch
    best_only: bool = False
    scored: list[ScoredSpan] = field(default_factory=list)
    ready: list[tuple[Sequence, int]] = field(default_factory=list)

    @staticmethod
    def of(chunks: list[tuple[Sequence, int]]) -> ForwardPass:
        """Of sequences and how many of their tokens to compute, their drafts beside; each must have pages for them."""
        batch = RaggedBatch([], [], [0], [], [], [])
        assembled = ForwardPass(batch, all(sequence.takes_best for sequence, _ in chunks))
        for sequence, count in chunks:
            start, end = sequence.computed, sequence.computed + count
            row = len(batch.token_ids) - start  # plus a position: that position's row
            batch.token_ids.extend(sequence.tokens[start:end])
            if sequence.draft:
                batch.token_ids.extend(sequence.draft)
                end += len(sequence.draft)
            batch.positions.extend(range(start, end))
            batch.starts.append(len(batch.token_ids))
            batch.context_lens.append(end)
            batch.page_tables.append(sequence.pages[: -(-end // PAGE_SIZE)])
            if sequence.awaits_prompt_logprobs:
                first, last = max(start, sequence.first_logit), min(end, sequence.prompt_len - 1)
                if last > first:
                    assembled.scored.append(ScoredSpan(sequence, len(batch.logit_rows), first, last - first))
                    batch.logit_rows.extend(range(row + first, row + last))
            if end >= len(sequence.tokens):
                assembled.ready.append((sequence, len(batch.logit_rows)))
                batch.logit_rows.extend(range(row + len(sequence.tokens) - 1, row + end))
        return assembled

    def compute(self, executor: Executor) -> torch.Tensor | list[int]:
        """The logits of the rows, or the id of each row's greatest one where that is all that matters."""
        if self.best_only and (best := executor.forward_best(self.batch)) is not None:
            return best
        return executor.forward(self.batch)
