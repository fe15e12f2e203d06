"""What attention needs to know of a step, worked out once and used by every layer.

KV pool of a layer: [pages, 2 (k, v), kv_heads, 32, head_dim]. A head's 32 keys are one contiguous block, so a context
is gathered head by head as whole blocks, and lands in the layout a batched matrix product wants.

Decoding sequences (one row each) are grouped by the padded length of their context: a group is one attention call.
The padded length follows from a sequence's own length alone, so that what else is in the batch changes no sum.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

PAGE_SIZE = 32
CHUNK_ROWS = 128  # rows of a prefill that attend together: later keys than theirs are not computed
CHUNK_SCORES = (
    1 << 19
)  # fewer rows where rows x context would exceed this, so that the scores of a head stay small
GATHER_BYTES = 4 << 20  # of a group's context: what stays in a cache between the gathering and the products
ROWWISE = 17  # rows of one sequence that attend one by one in float32: a token and its drafts
_EXACT_PAGES = 8


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """`count` sequences with one row each whose contexts are padded to the same number of pages, p."""

    rows: torch.Tensor | None  # int64 [count]; None: all rows of the step, in order
    count: int
    blocks: (
        torch.Tensor
    )  # int64 [2 · count · kv_heads · p]: of the pool seen as [pages · 2 · kv_heads, 32 · head_dim]
    bias: torch.Tensor  # [count, 1, 1, p · 32] in the compute dtype: 0, or -inf where nothing is to be seen


@dataclass(frozen=True, slots=True)
class RowBlock:
    """Rows of a prefill that attend to keys first … last of the gathered context."""

    start: int  # among the rows of the step
    stop: int
    first: int
    last: int
    bias: torch.Tensor  # [rows, columns]: of the last `columns` keys; those before are seen by all rows


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """One sequence with several rows."""

    blocks: torch.Tensor  # int64 [2 · kv_heads · p], as in `DecodeGroup`
    parts: tuple[RowBlock, ...]


@dataclass(frozen=True, slots=True)
class WindowPlan:
    groups: tuple[DecodeGroup, ...]
    chunks: tuple[PrefillChunk, ...]


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    rows: int  # T: real rows
    padded_rows: int  # of the activations
    slots: torch.Tensor  # int64 [T · 2 · kv_heads]: where a row's heads go in the pool seen as […, head_dim]
    begun: (
        torch.Tensor | None
    )  # int64: pages that this step begins and does not fill; cleared before they are written
    windows: dict[int | None, WindowPlan]


def padded_pages(tokens: int) -> int:
    """Pages that the context of a decoding sequence is padded to: exact up to 8, then four sizes for every doubling."""
    pages = -(-tokens // PAGE_SIZE)
    if pages <= _EXACT_PAGES:
        return pages
    step = 1 << ((pages - 1).bit_length() - 3)
    return -(-pages // step) * step


class Planner:
    """Makes the plans of one model: its key-value heads, the distinct sliding windows of its layers, its dtype."""

    def __init__(
        self,
        *,
        kv_heads: int,
        head_dim: int,
        windows: Iterable[int | None],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._kv_heads = kv_heads
        self._page_bytes = 2 * kv_heads * PAGE_SIZE * head_dim * dtype.itemsize
        self._windows = tuple(dict.fromkeys(windows))
        self._dtype = dtype
        self._device = device
        self._head_blocks = torch.arange(2 * kv_heads, device=device)

    def plan(
        self,
        *,
        positions: Sequence[int],
        starts: Sequence[int],
        context_lens: Sequence[int],
        page_tables: Sequence[Sequence[int]],
        padded_rows: int,
    ) -> AttentionPlan:
        """Arguments as in `models.batch.RaggedBatch`."""
        pages: list[int] = []
        begun: list[int] = []
        sequences = []
        for i, table in enumerate(page_tables):
            first, last, length = starts[i], starts[i + 1], context_lens[i]
            if 1 < last - first <= ROWWISE and self._dtype == torch.float32:
                # A verified draft gives the very sums of a step for each token, so that it cannot change a text.
                sequences += [(row, row + 1, positions[row] + 1, table) for row in range(first, last)]
            else:
                sequences.append((first, last, length, table))
            pages += [table[position // PAGE_SIZE] for position in positions[first:last]]
            ragged_end = length % PAGE_SIZE
            if ragged_end and length - ragged_end >= positions[first]:
                begun.append(table[length // PAGE_SIZE])
        blocks = self._tensor(pages)[:, None] * (2 * self._kv_heads) + self._head_blocks
        offsets = self._tensor(positions)[:, None] % PAGE_SIZE
        return AttentionPlan(
            rows=len(positions),
            padded_rows=padded_rows,
            slots=(blocks * PAGE_SIZE + offsets).view(-1),
            begun=self._tensor(begun) if begun else None,
            windows={
                window: WindowPlan(
                    groups=self._groups([s for s in sequences if s[1] - s[0] == 1], len(positions), window),
                    chunks=tuple(self._chunk(*s, window) for s in sequences if s[1] - s[0] > 1),
                )
                for window in self._windows
            },
        )

    def _tensor(self, values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)

    def _blocks(self, pages: torch.Tensor) -> torch.Tensor:
        """[n, p] page numbers → flat block numbers in the order [2, n, kv_heads, p]."""
        blocks = pages[None, :, None, :] * (2 * self._kv_heads)
        return (blocks + self._head_blocks.view(2, 1, self._kv_heads, 1)).reshape(-1)

    def _groups(
        self, sequences: list[tuple[int, int, int, Sequence[int]]], rows: int, window: int | None
    ) -> tuple[DecodeGroup, ...]:
        by_size: dict[int, list[tuple[int, int, int, list[int]]]] = {}
        for row, _, length, table in sequences:
            hidden = 0 if window is None else max(0, length - window)  # tokens that fell out of the window
            skipped = hidden // PAGE_SIZE
            seen = length - skipped * PAGE_SIZE
            size = padded_pages(seen)
            pages = list(table[skipped : -(-length // PAGE_SIZE)])
            pages += pages[-1:] * (size - len(pages))  # any page of its own will do: the mask hides it
            by_size.setdefault(size, []).append((row, hidden - skipped * PAGE_SIZE, seen, pages))
        groups = []
        for size, members in sorted(by_size.items()):
            most = max(1, GATHER_BYTES // (size * self._page_bytes))
            for first in range(0, len(members), most):
                groups.append(self._group(members[first : first + most], size, rows, window))
        return tuple(groups)

    def _group(
        self, members: list[tuple[int, int, int, list[int]]], size: int, rows: int, window: int | None
    ) -> DecodeGroup:
        numbers, low, high, pages = zip(*members, strict=True)
        column = torch.arange(size * PAGE_SIZE, device=self._device)
        unseen = column >= self._tensor(high)[:, None]
        if window is not None:
            unseen |= column < self._tensor(low)[:, None]
        return DecodeGroup(
            rows=None if len(members) == rows else self._tensor(numbers),
            count=len(members),
            blocks=self._blocks(torch.tensor(pages, device=self._device)),
            bias=self._bias(unseen)[:, None, None, :],
        )

    def _chunk(
        self, start: int, stop: int, context: int, table: Sequence[int], window: int | None
    ) -> PrefillChunk:
        past = context - (stop - start)
        skipped = 0 if window is None else max(0, past + 1 - window) // PAGE_SIZE
        origin = skipped * PAGE_SIZE  # position of the first gathered key
        parts = []
        size = max(16, min(CHUNK_ROWS, CHUNK_SCORES // context // 16 * 16))
        for first in range(past, context, size):
            last = min(first + size, context)  # positions of these rows
            lowest = 0 if window is None else max(0, first + 1 - window)
            lowest = max(lowest // PAGE_SIZE * PAGE_SIZE, origin)
            # Without a window only the square of the rows' own keys is partly hidden.
            ragged = first if window is None else lowest
            rows = torch.arange(first, last, device=self._device)[:, None]
            columns = torch.arange(ragged, last, device=self._device)
            unseen = columns > rows
            if window is not None:
                unseen |= columns <= rows - window
            parts.append(
                RowBlock(
                    start=start + first - past,
                    stop=start + last - past,
                    first=lowest - origin,
                    last=last - origin,
                    bias=self._bias(unseen),
                )
            )
        pages = self._tensor(table[skipped : -(-context // PAGE_SIZE)])
        return PrefillChunk(self._blocks(pages[None]), tuple(parts))

    def _bias(self, unseen: torch.Tensor) -> torch.Tensor:
        zeros = torch.zeros(unseen.shape, dtype=self._dtype, device=self._device)
        return zeros.masked_fill_(unseen, float("-inf"))
