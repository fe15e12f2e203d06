"""How far an executor's distributions are from a reference's, along given tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from inferloom.models.batch import PAGE_SIZE, Executor, RaggedBatch

LIKELIEST = 20  # tokens of the reference that a divergence looks at one by one


class Runner:
    """Sequences of equal length side by side through an executor, each with pages of its own."""

    def __init__(self, executor: Executor, *, sequences: int, length: int) -> None:
        self._executor = executor
        self._pages = -(-length // PAGE_SIZE)
        executor.allocate_kv(sequences * self._pages)

    def logits(self, tokens: Sequence[int], begin: int) -> torch.Tensor:
        """Of the next token after each token from `begin` − 1 on: [length − begin + 1, vocab]."""
        return self._pass([tokens], [0], range(begin - 1, len(tokens)))

    def greedy(self, prompts: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
        """The `tokens` likeliest ones after each prompt, one after the other."""
        first = [self._pass([p], [0], [len(p) - 1], place=i).argmax(-1) for i, p in enumerate(prompts)]
        chosen = [torch.cat(first)]
        for step in range(tokens - 1):
            new = [[int(token)] for token in chosen[-1]]
            logits = self._pass(new, [len(prompt) + step for prompt in prompts], range(len(prompts)))
            chosen.append(logits.argmax(-1))
        answers: list[list[int]] = torch.stack(chosen, dim=1).tolist()
        return answers

    def _pass(
        self, parts: list[Sequence[int]], begins: Sequence[int], wanted: Sequence[int], *, place: int = 0
    ) -> torch.Tensor:
        """One forward pass over the next tokens of sequences `place` and following; the `wanted` rows' logits."""
        starts = [0]
        for part in parts:
            starts.append(starts[-1] + len(part))
        ends = [begin + len(part) for begin, part in zip(begins, parts, strict=True)]
        tables = [
            list(range((place + i) * self._pages, (place + i) * self._pages - (-end // PAGE_SIZE)))
            for i, end in enumerate(ends)
        ]
        batch = RaggedBatch(
            [token for part in parts for token in part],
            [position for begin, end in zip(begins, ends, strict=True) for position in range(begin, end)],
            starts,
            ends,
            tables,
            list(wanted),
        )
        return self._executor.forward(batch).clone()


class Reference:
    """A distribution for each token of some sequences: the likeliest tokens one by one, all others together as one more."""

    def __init__(self, runner: Runner, sequences: Sequence[Sequence[int]], begin: int) -> None:
        self.sequences, self._begin = sequences, begin
        found = [
            torch.log_softmax(runner.logits(tokens, begin), dim=-1).topk(LIKELIEST) for tokens in sequences
        ]
        self._ids = [each.indices for each in found]
        self._scores = [each.values for each in found]

    def divergence(self, runner: Runner) -> torch.Tensor:
        """KL divergence in nats of the runner's distributions from these: [sequences, tokens]."""
        return self._divergence(
            [
                torch.log_softmax(runner.logits(tokens, self._begin), dim=-1).gather(-1, ids)
                for tokens, ids in zip(self.sequences, self._ids, strict=True)
            ]
        )

    def divergence_of(self, listed: Sequence[Sequence[Mapping[int, float]]]) -> torch.Tensor:
        """The same of log-probabilities by token id, for each sequence and token. One that is not listed has the smallest of
        those that are, which is more than it can have."""
        return self._divergence(
            [
                torch.tensor(
                    [
                        [row.get(id, min(row.values())) for id in ids]
                        for row, ids in zip(rows, wanted, strict=True)
                    ]
                )
                for rows, wanted in zip(listed, (ids.tolist() for ids in self._ids), strict=True)
            ]
        )

    def _divergence(self, others: Sequence[torch.Tensor]) -> torch.Tensor:
        mine, other = torch.stack(self._scores).double(), torch.stack(list(others)).double()
        probable = mine.exp()
        rest = (1 - probable.sum(-1)).clamp_min(1e-12)
        other_rest = (1 - other.exp().sum(-1)).clamp_min(1e-12)
        return (probable * (mine - other)).sum(-1) + rest * (rest / other_rest).log()
