"""The seam between engine and executor: one ragged batch in, the logits of the asked rows out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch

from inferloom.types import ModelCard

PAGE_SIZE = 32  # tokens of one KV page
KvDtype = Literal["auto", "int8"]  # of keys and values in their pages; auto: as the arithmetic


@dataclass(frozen=True, slots=True)
class RaggedBatch:
    """The tokens of one forward pass: sequence i owns rows `starts[i] … starts[i + 1]` of `token_ids`.

    Plain lists: the scheduler makes them, the executor turns them into what its kernels want.
    """

    token_ids: list[int]  # [T]
    positions: list[int]  # [T], of each token in its sequence; consecutive within a sequence
    starts: list[int]  # [B + 1], first row of each sequence, then T
    context_lens: list[int]  # [B], tokens of the sequence after this pass (cached ones + its rows here)
    page_tables: list[list[int]]  # [B], page numbers that cover context_lens[i] tokens, in order
    logit_rows: list[int]  # rows of token_ids whose logits are wanted


@dataclass(frozen=True, slots=True)
class PageTable:
    """A part of every page, such as one layer's keys: page p is the `size` bytes at `address` + p · `size`."""

    address: int
    size: int


class Executor(ABC):
    """One model's forward pass over paged KV. Not thread-safe: the engine's loop is its only caller."""

    card: ModelCard
    vocab_size: int
    device: torch.device

    @property
    @abstractmethod
    def kv_bytes_per_page(self) -> int:
        """Bytes that one page takes over all layers, keys and values."""

    @abstractmethod
    def allocate_kv(self, pages: int) -> None:
        """Allocate the KV pool. Raises `OutOfMemory`. Called once, before the first `forward`."""

    @abstractmethod
    def forward(self, batch: RaggedBatch) -> torch.Tensor:
        """Write K and V of all rows to their pages; return float32 logits [len(logit_rows), vocab_size],
        which the next call may overwrite."""

    def forward_best(self, batch: RaggedBatch) -> list[int] | None:
        """The same, where of each row only the greatest logit matters: its id, the first of equal ones; −1 where the row
        is no distribution (NaN, or nothing above −∞). None, and nothing is computed, where an executor has no shorter way."""
        return None

    @abstractmethod
    def copy_page(self, source: int, target: int) -> None:
        """Copy one page over all layers (copy-on-write of a shared tail)."""

    def page_tables(self) -> list[PageTable]:
        """Where the pages lie in this machine's memory; none where they lie elsewhere, and neither can their memory be
        given back page by page, nor their content be kept."""
        return []


class Embedder(ABC):
    """An encoder: pooled, L2-normalised (where the checkpoint says so) embeddings."""

    card: ModelCard

    @abstractmethod
    def embed(self, prompts: list[list[int]]) -> torch.Tensor:
        """float32 [len(prompts), dimensions]; prompts are token ids with special tokens, none empty."""
