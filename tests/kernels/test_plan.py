"""What a step's plan says, and that it depends on each sequence alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inferloom.kernels.plan import GATHER_BYTES, PAGE_SIZE, Planner, padded_pages
from inferloom.models import batch


def planner(*windows: int | None) -> Planner:
    return Planner(
        kv_heads=2, head_dim=16, windows=windows or (None,), dtype=torch.float32, device=torch.device("cpu")
    )


def test_the_page_size_is_the_engine_s() -> None:
    assert batch.PAGE_SIZE == PAGE_SIZE


@given(st.integers(1, 200_000))
def test_padding_covers_the_context_and_wastes_at_most_a_quarter(tokens: int) -> None:
    pages = -(-tokens // PAGE_SIZE)
    assert pages <= padded_pages(tokens) < pages * 1.25 or padded_pages(tokens) == pages


@given(st.integers(1, 100_000))
def test_padding_never_shrinks_as_a_context_grows(tokens: int) -> None:
    assert padded_pages(tokens) <= padded_pages(tokens + 1)


def test_decodes_of_one_padded_length_are_one_group() -> None:
    plan = planner().plan(
        positions=[32, 63, 64],
        starts=[0, 1, 2, 3],
        context_lens=[33, 64, 65],
        page_tables=[[0, 1], [2, 3], [4, 5, 6]],
        padded_rows=4,
    )
    groups = plan.windows[None].groups
    assert [group.count for group in groups] == [2, 1]
    assert groups[0].rows is not None and groups[0].rows.tolist() == [0, 1]


def test_pages_that_fell_out_of_the_window_are_not_read() -> None:
    plan = planner(40, None).plan(
        positions=[319], starts=[0, 1], context_lens=[320], page_tables=[list(range(10))], padded_rows=4
    )
    assert plan.windows[40].groups[0].bias.shape[-1] == 2 * PAGE_SIZE
    assert plan.windows[None].groups[0].bias.shape[-1] == 10 * PAGE_SIZE


@pytest.mark.parametrize(
    ("positions", "length", "begun"),
    [
        (range(20), 20, [8]),
        (range(64), 64, None),
        (range(40), 40, [9]),
        ([32], 33, [9]),
        ([33], 34, None),
        (range(10, 70), 70, [7]),
    ],
)
def test_a_page_that_is_begun_and_not_filled_is_cleared(
    positions: range, length: int, begun: list[int] | None
) -> None:
    plan = planner().plan(
        positions=list(positions),
        starts=[0, len(positions)],
        context_lens=[length],
        page_tables=[[8, 9, 7]],
        padded_rows=len(positions),
    )
    assert (None if plan.begun is None else plan.begun.tolist()) == begun


def test_long_contexts_are_attended_to_in_smaller_blocks_of_rows() -> None:
    for context, rows in ((200, 128), (4096, 128), (8192, 64), (60_000, 16)):
        table = list(range(-(-context // PAGE_SIZE)))
        chunk = planner().plan(
            positions=list(range(context - 150, context)),
            starts=[0, 150],
            context_lens=[context],
            page_tables=[table],
            padded_rows=152,
        ).windows[None].chunks[0]  # fmt: skip
        assert [part.stop - part.start for part in chunk.parts][:1] == [rows]
        assert chunk.parts[-1].stop == 150 and chunk.parts[-1].last == context


def test_a_group_is_split_where_its_context_would_outgrow_the_cache() -> None:
    count, length = 40, 60 * PAGE_SIZE
    plan = planner().plan(
        positions=[length - 1] * count,
        starts=list(range(count + 1)),
        context_lens=[length] * count,
        page_tables=[list(range(60))] * count,
        padded_rows=count,
    )
    groups = plan.windows[None].groups
    page_bytes = 2 * 2 * PAGE_SIZE * 16 * 4
    assert len(groups) > 1 and sum(group.count for group in groups) == count
    assert all(group.count * 64 * page_bytes <= GATHER_BYTES for group in groups)
