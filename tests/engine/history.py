"""A deterministic executor whose KV pages hold tokens: its logits are a function of the history that it reads back
through the page tables, so a wrong page table, a missed copy or a page reused too early changes the answer."""

from __future__ import annotations

import torch

from inferloom.models.batch import PAGE_SIZE, Executor, RaggedBatch
from inferloom.types import ModelCard


class HistoryExecutor(Executor):
    def __init__(self, *, vocab_size: int = 97, max_model_len: int = 4096) -> None:
        self.vocab_size = vocab_size
        self.device = torch.device("cpu")
        self.card = ModelCard(
            kind="generate",
            architecture="history",
            parameters=0,
            format="dummy",
            dtype="float32",
            max_model_len=max_model_len,
            vocab_size=vocab_size,
        )
        self.store: list[list[int]] = []
        self.batches: list[RaggedBatch] = []
        self.copies = 0
        self.best_only = 0  # calls of forward_best

    @property
    def kv_bytes_per_page(self) -> int:
        return PAGE_SIZE * 8

    def allocate_kv(self, pages: int) -> None:
        self.store = [[-1] * PAGE_SIZE for _ in range(pages)]

    def copy_page(self, source: int, target: int) -> None:
        self.copies += 1
        self.store[target] = list(self.store[source])

    def forward(self, batch: RaggedBatch) -> torch.Tensor:
        assert max(batch.token_ids) < self.vocab_size, "a token that the model does not know"
        self.batches.append(batch)
        written: set[tuple[int, int]] = set()
        for i, table in enumerate(batch.page_tables):
            begin, end = batch.starts[i], batch.starts[i + 1]
            assert end > begin
            assert batch.positions[begin:end] == list(
                range(batch.context_lens[i] - (end - begin), batch.context_lens[i])
            )
            assert len(table) == -(-batch.context_lens[i] // PAGE_SIZE)
            assert len(set(table)) == len(table)
            for row in range(begin, end):
                page, slot = table[batch.positions[row] // PAGE_SIZE], batch.positions[row] % PAGE_SIZE
                assert (page, slot) not in written, "two sequences write to one place"
                written.add((page, slot))
                self.store[page][slot] = batch.token_ids[row]
        owner = [
            i for i in range(len(batch.page_tables)) for _ in range(batch.starts[i], batch.starts[i + 1])
        ]
        rows = [self.logits(self.history(batch, owner[row], row)) for row in batch.logit_rows]
        return torch.stack(rows) if rows else torch.empty(0, self.vocab_size)

    def forward_best(self, batch: RaggedBatch) -> list[int]:
        self.best_only += 1
        return [int(row.argmax()) if row.isfinite().any() else -1 for row in self.forward(batch)]

    def history(self, batch: RaggedBatch, sequence: int, row: int) -> list[int]:
        table = batch.page_tables[sequence]
        tokens = [self.store[table[p // PAGE_SIZE]][p % PAGE_SIZE] for p in range(batch.positions[row] + 1)]
        assert -1 not in tokens, "a position that nobody computed"
        return tokens

    def logits(self, history: list[int]) -> torch.Tensor:
        generator = torch.Generator().manual_seed(hash(tuple(history)) & 0x7FFFFFFF)
        return torch.randn(self.vocab_size, generator=generator) * 3
