from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from inferloom.engine.pages import PagePool, kv_pages


class PagePoolMachine(RuleBasedStateMachine):
    """Random owners of a small pool, against a model that only counts."""

    @initialize(total=st.integers(1, 8), more=st.integers(0, 4))
    def start(self, total: int, more: int) -> None:
        self.pool = PagePool(total, capacity=total + more)
        self.pool.on_reclaim = self.reclaimed
        self.held: list[int] = []
        self.kept: set[int] = set()

    def reclaimed(self, page: int) -> None:
        assert page not in self.held
        self.kept.remove(page)

    @precondition(lambda self: self.pool.available > 0)
    @rule()
    def allocate(self) -> None:
        free = self.pool.free
        page = self.pool.allocate()
        assert page not in self.held
        assert (page in self.kept) is False
        assert self.pool.free == max(0, free - 1)
        self.held.append(page)

    @rule(pages=st.integers(0, 14))
    def resize(self, pages: int) -> None:
        idle, before = self.pool.idle, set(self.kept)
        free = self.pool.free
        total = self.pool.resize(pages)
        goal = max(1, min(pages, self.pool.capacity))
        assert total == self.pool.total == max(goal, len(set(self.held)))
        if free >= self.pool.capacity - goal:  # no cached page goes while a free one can
            assert (self.pool.idle, self.kept) == (idle, before)

    @rule()
    def take_retired(self) -> None:
        retired = self.pool.take_retired()
        assert retired == sorted(retired)
        assert not set(retired) & {*self.held, *self.kept}
        assert self.pool.take_retired() == []

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        page = data.draw(st.sampled_from(self.held))
        self.held.remove(page)
        self.pool.release(page)

    @precondition(lambda self: self.held or self.kept)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        page = data.draw(st.sampled_from(sorted({*self.held, *self.kept})))
        self.pool.share(page)
        self.held.append(page)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def keep(self, data: st.DataObject) -> None:
        page = data.draw(st.sampled_from(self.held))
        self.pool.keep(page)
        self.kept.add(page)

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        page = data.draw(st.sampled_from(sorted(self.kept)))
        self.pool.forget(page)
        self.kept.discard(page)

    @invariant()
    def every_page_is_in_one_state(self) -> None:
        if not hasattr(self, "pool"):
            return
        self.pool.check()
        assert [self.pool.owners(p) for p in range(self.pool.capacity)] == [
            self.held.count(p) for p in range(self.pool.capacity)
        ]
        assert self.pool.idle == len(self.kept - set(self.held))
        assert self.pool.in_use == len(set(self.held))
        assert self.pool.available == self.pool.free + self.pool.idle == self.pool.total - self.pool.in_use


TestPagePool = PagePoolMachine.TestCase
TestPagePool.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_the_longest_idle_page_is_reclaimed_first() -> None:
    pool = PagePool(3)
    pages = [pool.allocate() for _ in range(3)]
    for page in pages:
        pool.keep(page)
    pool.release_all(pages)  # the last page first
    assert [pool.allocate() for _ in range(3)] == pages[::-1]


def test_an_empty_pool_hands_out_nothing() -> None:
    pool = PagePool(1)
    pool.allocate()
    with pytest.raises(IndexError):
        pool.allocate()


def test_releasing_once_too_often_is_an_error() -> None:
    pool = PagePool(1)
    page = pool.allocate()
    pool.release(page)
    with pytest.raises(ValueError, match="more often"):
        pool.release(page)
    with pytest.raises(ValueError, match="not in use"):
        pool.keep(page)


def test_a_pool_has_pages() -> None:
    with pytest.raises(ValueError, match="at least one page"):
        PagePool(0)


@pytest.mark.parametrize(
    ("max_model_len", "max_batch_size", "budget_bytes", "pages"),
    [
        (64, 4, 1 << 30, 8),  # the longest batch
        (65, 4, 1 << 30, 12),  # a page begun is a page
        (4096, 512, 1000 * 1024, 1000),  # the budget
        (4096, 512, 10, 1),  # never none
    ],
)
def test_the_pool_is_the_smaller_of_batch_and_budget(
    max_model_len: int, max_batch_size: int, budget_bytes: int, pages: int
) -> None:
    assert pages == kv_pages(
        max_model_len=max_model_len,
        max_batch_size=max_batch_size,
        kv_bytes_per_page=1024,
        budget_bytes=budget_bytes,
        page_size=32,
    )
