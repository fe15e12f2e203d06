"""Driving an executor by hand: sequences that grow chunk by chunk in ragged batches, each with pages of its own."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import torch

from inferloom.models.batch import PAGE_SIZE, Executor, RaggedBatch


@dataclass
class Sequence:
    """Tokens of one sequence, how many of them are computed, and its pages."""

    tokens: list[int]
    pages: list[int]
    computed: int = 0
    logits: list[torch.Tensor] = field(default_factory=list)  # one [vocab] for every computed token

    @property
    def all_logits(self) -> torch.Tensor:
        return torch.stack(self.logits)


class Bench:
    """An executor with a pool, handing out pages in a shuffled order so that a context is never contiguous by luck."""

    def __init__(self, executor: Executor, *, pages: int = 96, seed: int = 0) -> None:
        executor.allocate_kv(pages)
        self.executor = executor
        order = torch.randperm(pages, generator=torch.Generator().manual_seed(seed)).tolist()
        self._free = itertools.cycle(order)

    def sequence(self, tokens: list[int], *, room: int = 0) -> Sequence:
        """A sequence with pages for its tokens and `room` more."""
        count = -(-(len(tokens) + room) // PAGE_SIZE)
        return Sequence(list(tokens), list(itertools.islice(self._free, count)))

    def step(self, *parts: tuple[Sequence, int]) -> None:
        """One forward pass over the next `n` tokens of every (sequence, n), all logits kept."""
        ids: list[int] = []
        positions: list[int] = []
        starts = [0]
        for sequence, count in parts:
            ids += sequence.tokens[sequence.computed : sequence.computed + count]
            positions += range(sequence.computed, sequence.computed + count)
            starts.append(len(ids))
        ends = [sequence.computed + count for sequence, count in parts]
        tables = [s.pages[: -(-end // PAGE_SIZE)] for (s, _), end in zip(parts, ends, strict=True)]
        batch = RaggedBatch(ids, positions, starts, ends, tables, list(range(len(ids))))
        logits = self.executor.forward(batch).clone()  # the next step may use the same memory
        for i, (sequence, count) in enumerate(parts):
            sequence.logits += logits[starts[i] : starts[i + 1]].unbind()
            sequence.computed += count

    def generate(self, sequences: list[Sequence], steps: int) -> None:
        """Greedy decoding of all sequences side by side; their prompts are computed already."""
        for _ in range(steps):
            for sequence in sequences:
                sequence.tokens.append(int(sequence.logits[-1].argmax()))
            self.step(*((sequence, 1) for sequence in sequences))
