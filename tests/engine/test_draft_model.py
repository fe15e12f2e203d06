"""A draft model: a second executor over pages of the same numbers. Its drafts change no answer."""

from __future__ import annotations

import pytest
import torch
from engine.driving import assert_all_pages_free, drive
from engine.history import HistoryExecutor
from engine.test_speculator import GREEDY, assert_same, random_requests

from inferloom.engine.engine import Engine
from inferloom.engine.messages import Generate, SamplingSpec
from inferloom.models.batch import RaggedBatch


class Twin(HistoryExecutor):
    """A draft model that answers as the larger one does, or (`share` < 1) only after some of the histories.

    It may meet pages of the prefix cache that it has not filled.
    """

    def __init__(self, *, share: float = 1.0, seen: bool = True, **options: int) -> None:
        super().__init__(**options)
        self.share = share
        self.seen = seen  # whether a page that was not filled is a mistake

    def history(self, batch: RaggedBatch, sequence: int, row: int) -> list[int]:
        if self.seen:
            return super().history(batch, sequence, row)
        table = batch.page_tables[sequence]
        return [self.store[table[p // 32]][p % 32] for p in range(batch.positions[row] + 1)]

    def logits(self, history: list[int]) -> torch.Tensor:
        same = hash((1, *history)) % 100 < 100 * self.share
        return super().logits(history if same else [*history, 1])


def engine(draft: HistoryExecutor | None, *, pages: int = 300, **options: object) -> Engine:
    e = Engine(HistoryExecutor(), pages=pages, draft=draft, speculative_tokens=4 if draft else 0, **options)  # type: ignore[arg-type]
    if e._speculator is not None:
        e._speculator._costs.seconds = lambda rows: 1.0  # type: ignore[method-assign]
    return e


@pytest.mark.parametrize(
    "sampling", [GREEDY, SamplingSpec(seed=4), SamplingSpec(seed=4, top_p=0.8, presence_penalty=0.5)]
)
def test_a_draft_model_that_is_always_right_divides_the_steps(sampling: SamplingSpec) -> None:
    request = Generate(1, list(range(50)), 101, sampling)
    plain, quick = engine(None), engine(Twin())
    assert_same(drive(quick, [request]), drive(plain, [request]))
    stats = quick.stats()
    assert stats.drafted_tokens == stats.accepted_tokens == 80
    assert stats.steps == 1 + 100 // 5


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_answers_are_those_without_drafts(share: float) -> None:
    requests = random_requests(40, seed=int(share * 10), vocab=97)
    draft = Twin(share=share, seen=False)
    e = engine(draft, pages=14, max_batch_tokens=60, max_batch_size=6)
    assert_same(drive(e, requests), drive(engine(None), requests))
    assert e.stats().preemptions > 0
    assert (e.stats().accepted_tokens > 100) == (share > 0)
    assert_all_pages_free(e)


def test_prompts_in_chunks_shared_prefixes_and_copied_tails_reach_the_draft_model() -> None:
    e = engine(Twin(), max_batch_tokens=16)
    drive(e, [Generate(1, list(range(90)), 30, SamplingSpec(seed=1), n=3)])
    second = Generate(2, [*range(90), 5, 6], 30, SamplingSpec(seed=2))
    answer = drive(e, [second])[2, 0]
    assert answer.cached_tokens == 64
    assert answer.tokens == drive(engine(None), [second])[2, 0].tokens
    assert e.stats().accepted_tokens == e.stats().drafted_tokens > 0


def test_a_draft_model_stops_where_its_own_context_ends() -> None:
    request = Generate(1, list(range(50)), 60, GREEDY)
    e = engine(Twin(max_model_len=64))
    assert_same(drive(e, [request]), drive(engine(None), [request]))
    assert 0 < e.stats().drafted_tokens < 16


def test_a_draft_model_that_is_always_wrong_is_left_alone_but_for_a_probe_now_and_then() -> None:
    e = engine(Twin(share=0.0))
    e._speculator._costs.seconds = lambda rows: 1.0 + 0.1 * (rows - 1)  # type: ignore[union-attr,method-assign]
    drive(e, [Generate(1, [1, 2], 1000, GREEDY)])
    assert 20 < e.stats().drafted_tokens < 60


def test_a_token_that_the_larger_model_does_not_have_is_not_drafted() -> None:
    e = engine(Twin(vocab_size=200))
    request = Generate(1, [1, 2], 40, SamplingSpec(temperature=2.0, seed=1))
    assert_same(drive(e, [request]), drive(engine(None), [request]))


@pytest.mark.parametrize("vocab_size", [60, 131])
def test_a_vocabulary_that_is_padded_otherwise_harms_nobody(vocab_size: int) -> None:
    requests = random_requests(30, seed=8, vocab=97)
    e = engine(Twin(seen=False, vocab_size=vocab_size))
    assert_same(drive(e, requests), drive(engine(None), requests))
    assert e.stats().drafted_tokens > 100
    assert_all_pages_free(e)
