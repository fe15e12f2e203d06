"""A model's KV pool: the smallest of what its longest batch can use and what its budget pays for."""

from __future__ import annotations

import logging

import pytest
from factories.checkpoints import make_checkpoint

from inferloom.errors import OutOfMemory
from inferloom.formats.checkpoint import Checkpoint
from inferloom.types import ModelCard
from inferloom.worker.kv_pool import device_budget
from inferloom.worker.messages.job import WorkerJob
from inferloom.worker.native import load_native

LONGEST = 512  # positions of the checkpoint
PAGE = 32  # tokens


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return make_checkpoint(tmp_path_factory.mktemp("pool") / "tiny", "llama", max_positions=LONGEST)


def card(
    checkpoint: Checkpoint, *, budget: int = 2 << 30, batch: int = 512, length: int | None = None
) -> ModelCard:
    job = WorkerJob(
        model="tiny",
        driver="native",
        checkpoint=checkpoint,
        threads=1,
        max_batch_size=batch,
        kv_budget_bytes=budget,
        max_model_len=length,
    )
    return load_native(job, report=lambda stage, fraction: None).card


def test_a_pool_holds_no_more_than_the_longest_batch_can_use(checkpoint: Checkpoint) -> None:
    assert card(checkpoint, batch=3).kv_pages == 3 * LONGEST // PAGE


def test_a_pool_costs_no_more_than_its_budget(checkpoint: Checkpoint) -> None:
    page = card(checkpoint, batch=1).kv_bytes // (LONGEST // PAGE)
    found = card(checkpoint, budget=20 * page + page // 2)
    assert (found.kv_pages, found.kv_bytes, found.max_model_len) == (20, 20 * page, LONGEST)


def test_a_context_that_does_not_fit_is_cut_and_the_log_says_so_once(
    checkpoint: Checkpoint, caplog: pytest.LogCaptureFixture
) -> None:
    page = card(checkpoint, batch=1).kv_bytes // (LONGEST // PAGE)
    with caplog.at_level(logging.WARNING):
        found = card(checkpoint, budget=4 * page)
    assert (found.kv_pages, found.max_model_len) == (4, 4 * PAGE)
    (line,) = caplog.messages
    assert (
        line
        == f"the context of tiny is cut from 512 to 128 tokens: {4 * page:,} bytes of KV cache hold no more"
    )


def test_a_context_that_was_asked_for_is_never_cut(checkpoint: Checkpoint) -> None:
    page = card(checkpoint, batch=1).kv_bytes // (LONGEST // PAGE)
    assert card(checkpoint, budget=4 * page, length=4 * PAGE).max_model_len == 4 * PAGE
    with pytest.raises(
        OutOfMemory,
        match=rf"out of memory: a context of 160 tokens .* {5 * page:,} bytes .* {4 * page:,} bytes .*lower max_model_len to 128",
    ):
        card(checkpoint, budget=4 * page, length=5 * PAGE)


def test_without_room_for_one_page_the_load_fails_with_the_numbers(checkpoint: Checkpoint) -> None:
    page = card(checkpoint, batch=1).kv_bytes // (LONGEST // PAGE)
    with pytest.raises(
        OutOfMemory, match=rf"out of memory: .* takes {page:,} bytes, but {page - 1:,} bytes are left"
    ):
        card(checkpoint, budget=page - 1)


def test_an_accelerators_budget_is_what_is_free_of_the_part_that_may_be_used() -> None:
    gib = 1 << 30
    assert device_budget(utilization=0.75, total=80 * gib, free=70 * gib) == 50 * gib
    assert device_budget(utilization=0.75, total=80 * gib, free=10 * gib) == 0
