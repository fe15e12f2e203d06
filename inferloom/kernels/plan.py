"""What attention needs to know of a step, worked out once and used by every layer.

Decoding sequences (one row each) are grouped by the padded length of their context: a group is one attention call.
The padded length follows from a sequence's own length alone, so that what else is in the batch changes no sum.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

PAGE_SIZE = 32
_STEPS_PER_OCTAVE = 4  # padded lengths: 32 … 256 by 32, 320, 384, 448, 512, 640 …


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Sequences with one row each whose contexts are padded to the same number of pages."""

    rows: torch.Tensor | None  # int64 [n]; None: all rows of the step, in order
    pages: torch.Tensor  # int64 [n · p]
    count: int  # n
    bias: torch.Tensor  # additive mask [n, 1, 1, p · 32], 0 or -inf


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """One sequence with several rows (or one that must not be grouped)."""

    start: int  # its rows are start … stop
    stop: int
    pages: torch.Tensor  # int64 [p]
    context: int  # tokens of the pages that count
    mask: torch.Tensor | None  # bool [rows, context]; None: the context is these rows, plainly causal


@dataclass(frozen=True, slots=True)
class WindowPlan:
    groups: tuple[DecodeGroup, ...]
    chunks: tuple[PrefillChunk, ...]


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    rows: int  # T: real rows
    padded_rows: int  # of the activations
    slots: torch.Tensor  # int64 [T]: page * 32 + offset of each row in the pool
    fresh: torch.Tensor | None  # int64: pages begun here, cleared before they are written
    windows: dict[int | None, WindowPlan]


def padded_pages(tokens: int) -> int:
    """Pages a decoding sequence of this length is padded to: exact up to 8, then 4 sizes for every doubling."""
    pages = -(-tokens // PAGE_SIZE)
    if pages <= 2 * _STEPS_PER_OCTAVE:
        return pages
    step = 1 << ((pages - 1).bit_length() - 3)
    return -(-pages // step) * step


def plan_attention(
    *,
    positions: Sequence[int],
    starts: Sequence[int],
    context_lens: Sequence[int],
    page_tables: Sequence[Sequence[int]],
    windows: Iterable[int | None],
    padded_rows: int,
    dtype: torch.dtype,
    device: torch.device,
) -> AttentionPlan:
    """Fields as in `models.batch.RaggedBatch`; `windows` are the distinct sliding windows of the model's layers."""
    slots: list[int] = []
    fresh: list[int] = []
    decodes: list[int] = []
    prefills: list[int] = []
    for i, table in enumerate(page_tables):
        first, last = starts[i], starts[i + 1]
        (decodes if last - first == 1 else prefills).append(i)
        for position in positions[first:last]:
            page, offset = divmod(position, PAGE_SIZE)
            slots.append(table[page] * PAGE_SIZE + offset)
            if offset == 0:
                fresh.append(table[page])
    return AttentionPlan(
        rows=len(positions),
        padded_rows=padded_rows,
        slots=torch.tensor(slots, dtype=torch.int64, device=device),
        fresh=torch.tensor(fresh, dtype=torch.int64, device=device) if fresh else None,
        windows={
            window: WindowPlan(
                groups=_groups(decodes, starts, context_lens, page_tables, window, dtype, device),
                chunks=tuple(
                    _chunk(starts[i], starts[i + 1], context_lens[i], page_tables[i], window, device)
                    for i in prefills
                ),
            )
            for window in windows
        },
    )


def _groups(
    decodes: list[int],
    starts: Sequence[int],
    context_lens: Sequence[int],
    page_tables: Sequence[Sequence[int]],
    window: int | None,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[DecodeGroup, ...]:
    by_size: dict[int, list[tuple[int, int, int, list[int]]]] = {}
    for i in decodes:
        length = context_lens[i]
        hidden = 0 if window is None else max(0, length - window)  # tokens that fell out of the window
        first = hidden // PAGE_SIZE
        seen = length - first * PAGE_SIZE
        pages = list(page_tables[i][first : -(-length // PAGE_SIZE)])
        size = padded_pages(seen)
        pages += [pages[0]] * (size - len(pages))  # any page will do: the mask hides it
        by_size.setdefault(size, []).append((starts[i], hidden - first * PAGE_SIZE, seen, pages))
    groups = []
    whole = len(by_size) == 1 and len(decodes) == starts[-1]
    for size, members in sorted(by_size.items()):
        column = torch.arange(size * PAGE_SIZE, device=device)
        low = torch.tensor([[member[1]] for member in members], device=device)
        high = torch.tensor([[member[2]] for member in members], device=device)
        visible = (column >= low) & (column < high)
        bias = torch.zeros(visible.shape, dtype=dtype, device=device).masked_fill_(~visible, float("-inf"))
        groups.append(
            DecodeGroup(
                rows=None if whole else torch.tensor([member[0] for member in members], device=device),
                pages=torch.tensor([page for member in members for page in member[3]], device=device),
                count=len(members),
                bias=bias[:, None, None, :],
            )
        )
    return tuple(groups)


def _chunk(
    start: int, stop: int, context: int, table: Sequence[int], window: int | None, device: torch.device
) -> PrefillChunk:
    rows = stop - start
    if rows == context and (window is None or window >= context):
        pages = torch.tensor(table[: -(-context // PAGE_SIZE)], device=device)
        return PrefillChunk(start, stop, pages, context, None)
    past = context - rows
    first = 0 if window is None else max(0, past + 1 - window) // PAGE_SIZE
    skipped = first * PAGE_SIZE
    position = torch.arange(past, context, device=device)[:, None]
    column = torch.arange(skipped, context, device=device)[None, :]
    mask = column <= position
    if window is not None:
        mask &= column > position - window
    pages = torch.tensor(table[first : -(-context // PAGE_SIZE)], device=device)
    return PrefillChunk(start, stop, pages, context - skipped, mask)
