from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from inferloom.engine.messages import Generate, SamplingSpec
from inferloom.engine.pages import PagePool
from inferloom.engine.policy import make_policy
from inferloom.engine.prefix_cache import PrefixCache
from inferloom.engine.scheduler import Plan, Scheduler
from inferloom.engine.sequence import PRIORITY_STEPS, Request, Sequence

PAGE = 4


class House:
    """A scheduler with its pool, and sequences numbered as they come."""

    def __init__(
        self, *, pages: int = 16, tokens: int = 16, size: int = 8, rows: int = 1000, cache: bool = True
    ) -> None:
        self.pool = PagePool(pages)
        self.tokens, self.size = tokens, size
        self.scheduler = Scheduler(
            self.pool,
            PrefixCache(self.pool) if cache else None,
            make_policy("greedy"),
            max_batch_tokens=tokens,
            max_batch_size=size,
            max_logit_rows=rows,
            page_size=PAGE,
        )
        self.steps = 0
        self.count = 0

    def sequence(self, prompt: list[int], *, priority: int = 0, scored: bool = False) -> Sequence:
        self.count += 1
        spec = Generate(self.count, prompt, 8, SamplingSpec(), priority=priority, prompt_logprobs=scored)
        request = Request(spec, self.steps, self.count, frozenset(), {0}, forked=True)
        if scored:
            request.prompt_logprobs = [(None, [])]
        return Sequence(request, 0, list(prompt))

    def add(self, prompt: list[int], *, priority: int = 0, scored: bool = False) -> Sequence:
        sequence = self.sequence(prompt, priority=priority, scored=scored)
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> Plan:
        """Schedule and pretend to compute: whoever has all tokens computed gets another one."""
        plan = self.scheduler.schedule()
        self.steps += 1
        for sequence, count in plan.chunks:
            self.scheduler.computed(sequence, count)
            if sequence.remaining == 0:
                sequence.tokens.append(self.steps % 7)
        return plan


def sizes(plan: Plan) -> list[int]:
    return [count for _, count in plan.chunks]


def test_decodes_come_first_then_prompts_share_what_is_left() -> None:
    house = House(tokens=10)
    first = house.add([1] * 4)
    house.step()
    second, third = house.add([2] * 7), house.add([3] * 7)
    assert house.step().chunks == [(first, 1), (second, 7), (third, 2)]
    assert house.step().chunks == [(first, 1), (second, 1), (third, 5)]


def test_a_long_prompt_is_computed_in_chunks() -> None:
    house = House(tokens=16, pages=16)
    house.add([1] * 40)
    assert [sizes(house.step()) for _ in range(4)] == [[16], [16], [8], [1]]


def test_nobody_overtakes_the_first_who_waits() -> None:
    house = House(pages=8, cache=False)
    house.add([1] * 20)
    house.step()
    long, short = house.add([2] * 16), house.add([3])
    house.step()
    assert house.scheduler.waiting == [long, short]


def test_the_batch_is_bounded() -> None:
    house = House(size=3)
    for _ in range(5):
        house.add([1])
    assert sizes(house.step()) == [1, 1, 1]
    assert len(house.scheduler.waiting) == 2


def test_everyone_who_runs_gets_a_token_in_every_step() -> None:
    house = House(tokens=4, size=100, pages=50)
    for i in range(10):
        house.add([i])
    for _ in range(5):
        assert sizes(house.step()) == [1, 1, 1, 1]


def test_the_youngest_is_preempted_when_pages_run_out_and_goes_on_later() -> None:
    house = House(pages=4, tokens=100, cache=False)
    old, young = house.add([1] * 4), house.add([2] * 3)
    while house.scheduler.preemptions == 0:
        house.step()
        assert len(old.tokens) < 30
    assert house.scheduler.running == [old]
    assert house.scheduler.waiting == [young]
    assert (young.pages, young.computed) == ([], 0)
    tokens = list(young.tokens)
    house.scheduler.remove(old)
    house.step()
    assert young.tokens[: len(tokens)] == tokens
    assert young.computed == len(tokens)


def test_the_lower_priority_is_preempted_even_if_older() -> None:
    house = House(pages=4, tokens=100, cache=False)
    low, high = house.add([1] * 4, priority=0), house.add([2] * 3, priority=1)
    while house.scheduler.preemptions == 0:
        house.step()
    assert house.scheduler.running == [high]
    assert house.scheduler.waiting == [low]


def test_a_higher_priority_makes_room_for_itself() -> None:
    house = House(pages=6, tokens=100, size=2)
    low, lower = house.add([1] * 4), house.add([2] * 4, priority=-1)
    house.step()
    high = house.add([3] * 4, priority=1)
    house.step()
    assert house.scheduler.running == [high, low]
    assert house.scheduler.waiting == [lower]


def test_equals_do_not_preempt_each_other_to_get_in() -> None:
    house = House(pages=4, tokens=100)
    house.add([1] * 12)
    house.step()
    house.add([2] * 12)
    house.step()
    assert house.scheduler.preemptions == 0


def test_priority_is_a_head_start_and_not_a_privilege_for_ever() -> None:
    house = House()
    low = house.sequence([1])
    house.steps = PRIORITY_STEPS - 1
    assert house.sequence([2], priority=1).rank < low.rank
    house.steps = PRIORITY_STEPS + 1
    assert house.sequence([2], priority=1).rank > low.rank


def test_a_known_prefix_is_not_computed_again() -> None:
    house = House()
    house.add([1, 2, 3, 4, 5, 6, 7, 8, 9])
    house.step()
    second = house.add([1, 2, 3, 4, 5, 6, 7, 8, 0])
    assert house.step().chunks[1] == (second, 1)


def test_the_last_token_of_a_known_prompt_is_computed_for_its_logits() -> None:
    house = House()
    house.add([1, 2, 3, 4, 5, 6, 7, 8])
    house.step()
    second = house.add([1, 2, 3, 4, 5, 6, 7, 8])
    assert house.step().chunks[1] == (second, 4)


def test_a_prefix_that_this_step_computes_for_another_is_waited_for_and_shared() -> None:
    house = House(tokens=40, pages=40)
    first, same, longer = house.add([1] * 10), house.add([1] * 10), house.add([1] * 8 + [2] * 8)
    other = house.add([3] * 10)
    assert house.step().chunks == [(first, 10), (other, 10)]
    assert house.step().chunks == [(first, 1), (other, 1), (same, 2), (longer, 8)]
    assert same.pages[:2] == longer.pages[:2] == first.pages[:2]


def test_who_waits_for_a_prefix_waits_as_long_as_it_is_being_computed() -> None:
    house = House(tokens=8, pages=40)
    first, same = house.add([1] * 18), house.add([1] * 18)
    assert [house.step().chunks for _ in range(4)] == [
        [(first, 8)],
        [(first, 8)],
        [(first, 2), (same, 2)],
        [(first, 1), (same, 1)],
    ]


def test_without_a_prefix_cache_nobody_waits_for_a_prefix() -> None:
    house = House(cache=False)
    assert {house.add([1] * 8), house.add([1] * 8)} == {s for s, _ in house.step().chunks}


def test_a_scored_prompt_uses_no_prefix_and_few_rows_of_logits() -> None:
    house = House(rows=5)
    house.add([1, 2, 3, 4, 5, 6, 7, 8, 9])
    house.step()
    scored = house.add([1, 2, 3, 4, 5, 6, 7, 8, 9], scored=True)
    assert house.step().chunks[1] == (scored, 5)


def test_a_fork_copies_its_tail_when_it_writes() -> None:
    house = House()
    parent = house.add([1, 2, 3, 4, 5, 6])
    house.step()
    child = house.sequence([1, 2, 3, 4, 5, 6])
    house.scheduler.fork(parent, child)
    assert child.pages == parent.pages
    child.tokens.append(50)
    plan = house.step()
    assert len(plan.copies) == 1
    assert child.pages[0] == parent.pages[0]
    assert child.pages[1] != parent.pages[1]
    assert house.step().copies == []
    house.pool.check()


def test_a_fork_at_the_end_of_a_page_copies_nothing() -> None:
    house = House()
    parent = house.add([1, 2, 3, 4])
    house.step()
    child = house.sequence([1, 2, 3, 4])
    house.scheduler.fork(parent, child)
    child.tokens.append(50)
    assert house.step().copies == []
    assert child.pages[1] != parent.pages[1]


def test_a_fork_without_a_place_waits() -> None:
    house = House(size=1)
    parent = house.add([1, 2, 3])
    house.step()
    child = house.sequence([1, 2, 3])
    house.scheduler.fork(parent, child)
    assert house.scheduler.waiting == [child]
    assert child.pages == []


class SchedulerMachine(RuleBasedStateMachine):
    """Random arrivals, forks, ends and steps; every invariant after each."""

    @initialize(
        pages=st.integers(5, 12), tokens=st.integers(1, 20), size=st.integers(1, 6), cache=st.booleans()
    )
    def start(self, pages: int, tokens: int, size: int, cache: bool) -> None:
        self.house = House(pages=pages, tokens=tokens, size=size, cache=cache)
        self.alive: list[Sequence] = []

    @rule(length=st.integers(1, 12), start=st.integers(0, 1), priority=st.sampled_from([0, 0, 1, 2]))
    def arrive(self, length: int, start: int, priority: int) -> None:
        self.alive.append(self.house.add([start, *range(1, length)], priority=priority))

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(self.alive))
        self.alive.remove(sequence)
        self.house.scheduler.remove(sequence)

    @precondition(lambda self: any(s.remaining == 1 for s in self.house.scheduler.running))
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        parent = data.draw(st.sampled_from([s for s in self.house.scheduler.running if s.remaining == 1]))
        child = self.house.sequence(parent.tokens)
        self.house.scheduler.fork(parent, child)
        self.alive.append(child)

    @rule()
    def step(self) -> None:
        house = self.house
        decoding = [s for s in house.scheduler.running if s.remaining == 1]
        before = house.scheduler.preemptions
        plan = house.step()
        assert sum(sizes(plan)) <= house.tokens
        assert all(count > 0 for count in sizes(plan))
        assert len({id(s) for s, _ in plan.chunks}) == len(plan.chunks)
        assert {id(s) for s, _ in plan.chunks} <= {id(s) for s in house.scheduler.running}
        if house.scheduler.preemptions == before:
            assert {id(s) for s in decoding} <= {id(s) for s, _ in plan.chunks}
        assert plan.chunks or not self.alive, "somebody is there and nothing happens"
        for sequence in list(self.alive):  # whoever could outgrow the pool is done
            if len(sequence.tokens) > 4 * PAGE:
                self.alive.remove(sequence)
                house.scheduler.remove(sequence)

    @invariant()
    def pages_and_places_add_up(self) -> None:
        if not hasattr(self, "house"):
            return
        scheduler, pool = self.house.scheduler, self.house.pool
        pool.check()
        assert len(scheduler.running) <= min(self.house.size, self.house.tokens)
        assert {id(s) for s in self.alive} == {id(s) for s in (*scheduler.running, *scheduler.waiting)}
        owners = Counter(page for s in self.alive for page in s.pages)
        assert all(pool.owners(page) == owners[page] for page in range(pool.total))
        for queue in (scheduler.running, scheduler.waiting):
            assert [s.rank for s in queue] == sorted(s.rank for s in queue)
        for sequence in scheduler.running:
            assert len(sequence.pages) * PAGE >= sequence.computed
            assert 0 <= sequence.computed < len(sequence.tokens)
        assert all(not s.pages and s.computed == 0 for s in scheduler.waiting)

    def teardown(self) -> None:
        """Nobody starves: without newcomers, everyone gets to the end."""
        if not hasattr(self, "house"):
            return
        for _ in range(2000):
            if not self.alive:
                break
            self.step()
        assert not self.alive
        assert self.house.pool.in_use == 0


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_a_low_priority_is_served_although_higher_ones_keep_coming(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inferloom.engine.sequence.PRIORITY_STEPS", 20)
    house = House(pages=8, tokens=8, size=1)
    low = house.add([1, 2, 3])
    for _ in range(200):
        house.add([4, 5], priority=1)
        house.step()
        for sequence in list(house.scheduler.running):
            if len(sequence.tokens) > 4:
                house.scheduler.remove(sequence)
                if sequence is low:
                    return
    raise AssertionError("starved")
