"""Who is loaded next, who yields, and that nobody waits for ever."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from inferloom.catalog.admission import (
    TERMS,
    Decision,
    Policy,
    Waiting,
    expected_waits,
    in_order,
    look_again_secs,
    next_load,
    patience_secs,
    refusal,
)
from inferloom.catalog.eviction import Resident, victims

POLICIES: list[Policy] = ["latency", "throughput"]


def waits(model: str, need: int = 10, **facts: object) -> Waiting:
    given = {"requests": 1, "oldest_secs": 0.0, "load_secs": 1.0, **facts}
    return Waiting(model=model, need_bytes=need, **given)  # type: ignore[arg-type]


def resident(id_: str, size: int = 10, **facts: object) -> Resident:
    return Resident(id=id_, bytes=size, **{"reload_secs": 1.0, **facts})  # type: ignore[arg-type]


@st.composite
def snapshots(draw: st.DrawFn) -> tuple[list[Waiting], list[Resident], int]:
    waiting = [
        Waiting(
            model=f"w{index}",
            requests=draw(st.integers(1, 20)),
            oldest_secs=draw(st.sampled_from([0.0, 0.5, 4.0, 20.0, 500.0])),
            need_bytes=draw(st.integers(1, 40)),
            load_secs=draw(st.sampled_from([0.05, 1.0, 10.0])),
            priority=draw(st.integers(0, 1)),
        )
        for index in range(draw(st.integers(0, 4)))
    ]
    residents = [
        Resident(
            id=f"r{index}",
            bytes=draw(st.integers(1, 40)),
            idle_secs=draw(st.sampled_from([0.0, 3.0, 300.0])),
            served_secs=draw(st.sampled_from([0.0, 2.0, 30.0, 1000.0])),
            reload_secs=draw(st.sampled_from([0.05, 1.0, 10.0])),
            priority=draw(st.integers(0, 1)),
            pinned=draw(st.integers(0, 4)) == 0,
            leased=draw(st.booleans()),
            waiting=draw(st.integers(0, 2)),
        )
        for index in range(draw(st.integers(0, 5)))
    ]
    return waiting, residents, draw(st.integers(0, 40))


def chosen_of(decision: Decision, waiting: list[Waiting]) -> Waiting:
    (chosen,) = (one for one in waiting if one.model == decision.model)
    return chosen


def yields_for(one: Waiting, residents: list[Resident], free: int) -> bool:
    """Whether there is room for it once every lease has ended."""
    able = [r for r in residents if not r.pinned]
    return free + sum(r.bytes for r in able) >= one.need_bytes


@given(snapshots(), st.sampled_from(POLICIES))
def test_a_decision_makes_room_and_ends_nobody_pinned(
    snapshot: tuple[list[Waiting], list[Resident], int], policy: Policy
) -> None:
    waiting, residents, free = snapshot
    decision = next_load(waiting, residents, free=free, policy=policy)
    if decision is None:
        return
    chosen = chosen_of(decision, waiting)
    assert free + sum(victim.bytes for victim in decision.victims) >= chosen.need_bytes
    assert all(victim.resident in residents and not victim.resident.pinned for victim in decision.victims)
    leased = {r.id for r in residents if r.leased}
    assert set(decision.yielding) == leased & {victim.id for victim in decision.victims}
    assert decision.ready == (not decision.yielding)


@given(snapshots(), st.sampled_from(POLICIES))
def test_whoever_can_be_loaded_at_once_is_unless_somebody_has_waited_too_long(
    snapshot: tuple[list[Waiting], list[Resident], int], policy: Policy
) -> None:
    waiting, residents, free = snapshot
    decision = next_load(waiting, residents, free=free, policy=policy)
    patience = patience_secs(waiting, policy=policy)
    if any(victims(residents, need=one.need_bytes, free=free) is not None for one in waiting):
        assert decision is not None
        chosen = chosen_of(decision, waiting)
        assert decision.ready or chosen.oldest_secs >= patience


@given(snapshots(), st.sampled_from(POLICIES))
def test_who_has_waited_too_long_is_next_and_the_longest_waiting_first(
    snapshot: tuple[list[Waiting], list[Resident], int], policy: Policy
) -> None:
    waiting, residents, free = snapshot
    patience = patience_secs(waiting, policy=policy)
    late = [one for one in waiting if one.oldest_secs >= patience and yields_for(one, residents, free)]
    if late:
        decision = next_load(waiting, residents, free=free, policy=policy)
        assert decision is not None
        chosen = chosen_of(decision, waiting)
        assert chosen.oldest_secs == max(one.oldest_secs for one in late)


@given(snapshots(), st.sampled_from(POLICIES))
def test_nobody_yields_before_its_quantum_to_who_has_not_waited_too_long(
    snapshot: tuple[list[Waiting], list[Resident], int], policy: Policy
) -> None:
    waiting, residents, free = snapshot
    decision = next_load(waiting, residents, free=free, policy=policy)
    if decision is None:
        return
    chosen = chosen_of(decision, waiting)
    if chosen.oldest_secs < patience_secs(waiting, policy=policy):
        for victim in decision.victims:
            served = victim.resident.served_secs >= TERMS[policy].quantum * victim.resident.reload_secs
            assert not victim.resident.leased or served or victim.resident.priority < chosen.priority


@given(snapshots(), st.sampled_from(POLICIES), st.integers())
def test_the_order_of_what_is_told_does_not_matter(
    snapshot: tuple[list[Waiting], list[Resident], int], policy: Policy, seed: int
) -> None:
    waiting, residents, free = snapshot
    shuffled = random.Random(seed)
    mixed = [shuffled.sample(waiting, len(waiting)), shuffled.sample(residents, len(residents))]
    assert next_load(*mixed, free=free, policy=policy) == next_load(  # type: ignore[arg-type]
        waiting, residents, free=free, policy=policy
    )


@given(snapshots(), st.sampled_from(POLICIES))
def test_where_nothing_is_decided_time_brings_a_decision_to_whoever_can_have_room(
    snapshot: tuple[list[Waiting], list[Resident], int], policy: Policy
) -> None:
    waiting, residents, free = snapshot
    if next_load(waiting, residents, free=free, policy=policy) is not None:
        return
    secs = look_again_secs(waiting, residents, policy=policy)
    assert secs > 0
    if any(yields_for(one, residents, free) for one in waiting):
        assert secs <= patience_secs(waiting, policy=policy)


def test_nobody_waits_nothing_is_done() -> None:
    assert next_load([], [resident("a")], free=0, policy="latency") is None
    assert look_again_secs([], [resident("a", leased=True)], policy="latency") == math.inf


@pytest.mark.parametrize("policy", POLICIES)
def test_a_busy_model_yields_after_its_quantum(policy: Policy) -> None:
    quantum = TERMS[policy].quantum
    early = [resident("busy", leased=True, served_secs=quantum - 0.5)]
    late = [resident("busy", leased=True, served_secs=quantum)]
    assert next_load([waits("next")], early, free=0, policy=policy) is None
    assert look_again_secs([waits("next")], early, policy=policy) == pytest.approx(0.5)
    decision = next_load([waits("next")], late, free=0, policy=policy)
    assert decision is not None
    assert decision.yielding == ["busy"]
    assert not decision.ready


def test_throughput_lets_a_model_serve_longer() -> None:
    busy = [resident("busy", leased=True, served_secs=6.0)]
    assert next_load([waits("next")], busy, free=0, policy="latency") is not None
    assert next_load([waits("next")], busy, free=0, policy="throughput") is None


def test_a_higher_priority_does_not_wait_for_a_lower_one() -> None:
    busy = [resident("busy", leased=True, served_secs=0.0)]
    assert next_load([waits("next", priority=1)], busy, free=0, policy="latency") is not None
    assert next_load([waits("next")], busy, free=0, policy="latency") is None


def test_the_idle_leave_before_the_busy_yield() -> None:
    residents = [resident("busy", leased=True, served_secs=1e6), resident("idle", idle_secs=1.0)]
    decision = next_load([waits("next")], residents, free=0, policy="latency")
    assert decision is not None
    assert decision.ready
    assert [victim.id for victim in decision.victims] == ["idle"]


def test_who_yields_goes_on_yielding_however_many_wait_for_it_meanwhile() -> None:
    """Or the next request would make somebody else yield, and at the one after that again somebody else."""
    alike = [resident(id_, leased=True, served_secs=1e6) for id_ in "abc"]
    first = next_load([waits("next")], alike, free=0, policy="latency")
    assert first is not None
    (chosen,) = first.yielding
    later = [structs.replace(r, yielding=True, waiting=40, rate=9.0) if r.id == chosen else r for r in alike]
    second = next_load([waits("next", oldest_secs=1.0)], later, free=0, policy="latency")
    assert second is not None
    assert second.yielding == [chosen]


def test_who_need_not_yield_any_more_does_not() -> None:
    residents = [resident("a", leased=True, yielding=True, served_secs=1e6), resident("b", leased=True)]
    decision = next_load([waits("next")], residents, free=10, policy="latency")
    assert decision is not None
    assert decision.victims == []


def test_those_of_its_group_leave_though_there_is_room() -> None:
    residents = [resident("rival"), resident("other")]
    one = waits("next", excludes=frozenset({"rival"}))
    decision = next_load([one], residents, free=100, policy="latency")
    assert decision is not None
    assert [victim.id for victim in decision.victims] == ["rival"]


def test_a_busy_one_of_its_group_yields_after_its_quantum() -> None:
    one = waits("next", excludes=frozenset({"rival"}))
    early, late = (resident("rival", leased=True, served_secs=secs) for secs in (0.0, 1e6))
    assert next_load([one], [early], free=100, policy="latency") is None
    decision = next_load([one], [late], free=100, policy="latency")
    assert decision is not None
    assert decision.yielding == ["rival"]


def test_where_every_seat_is_taken_somebody_leaves_though_there_is_room() -> None:
    residents = [resident("recent"), resident("old", idle_secs=900.0)]
    decision = next_load([waits("next")], residents, free=100, policy="latency", seats=0)
    assert decision is not None
    assert [victim.id for victim in decision.victims] == ["old"]


def test_patience_grows_with_the_loads_that_are_asked_for_up_to_a_limit() -> None:
    one, many, slow = (
        patience_secs([waits("a", load_secs=secs)], policy="latency") for secs in (0.1, 10.0, 1e4)
    )
    assert one == TERMS["latency"].patience_secs < many == 40.0 < slow == TERMS["latency"].patience_most


def test_those_being_loaded_are_left_alone() -> None:
    residents = [resident("loading")]
    assert next_load([waits("next")], residents, free=0, policy="latency", now_excluded=["loading"]) is None


def test_the_many_go_before_the_one_that_came_a_little_earlier() -> None:
    waiting = [waits("one", oldest_secs=1.2), waits("many", requests=9, oldest_secs=1.0)]
    assert [one.model for one in in_order(waiting, policy="latency")] == ["many", "one"]


def test_the_quick_load_goes_before_the_slow_one() -> None:
    waiting = [waits("slow", oldest_secs=1.0, load_secs=20.0), waits("quick", oldest_secs=1.0)]
    assert [one.model for one in in_order(waiting, policy="latency")] == ["quick", "slow"]


def test_room_for_who_has_waited_too_long_is_not_given_to_others() -> None:
    """Otherwise small models could be loaded into what is free again and again, and the large one never."""
    residents = [resident("busy", leased=True, served_secs=0.0)]
    waiting = [waits("large", need=15, oldest_secs=1e4), waits("small", need=5)]
    decision = next_load(waiting, residents, free=5, policy="latency")
    assert decision is not None
    assert decision.model == "large"
    assert decision.yielding == ["busy"]


def test_who_finds_no_room_at_all_stops_nobody() -> None:
    residents = [resident("pinned", pinned=True)]
    waiting = [waits("too large", need=100, oldest_secs=1e4), waits("small", need=5)]
    decision = next_load(waiting, residents, free=5, policy="latency")
    assert decision is not None
    assert decision.model == "small"


def test_the_expected_wait_is_the_sum_of_the_loads_before_where_there_is_room() -> None:
    waiting = [waits("a", oldest_secs=3.0), waits("b", oldest_secs=2.0, load_secs=2.0), waits("c")]
    found = expected_waits(waiting, [], free=30, policy="latency", busy_secs=0.5)
    assert found == {"a": 1.5, "b": 3.5, "c": 4.5}


def test_the_expected_wait_counts_the_quantum_of_who_is_in_the_way() -> None:
    residents = [resident("busy", leased=True, served_secs=1.0)]
    found = expected_waits([waits("a", oldest_secs=1.0), waits("b")], residents, free=0, policy="latency")
    assert found == {"a": 3.0 + 1.0, "b": 3.0 + 1.0 + 4.0 + 1.0}


def test_the_expected_wait_is_no_longer_than_leases_last() -> None:
    residents = [resident("busy", leased=True, served_secs=0.0)]
    found = expected_waits([waits("a")], residents, free=0, policy="throughput", lease_secs=2.5)
    assert found == {"a": 2.5 + 1.0}


def test_the_expected_wait_of_what_never_fits_is_infinite() -> None:
    residents = [resident("pinned", pinned=True)]
    assert expected_waits([waits("a")], residents, free=0, policy="latency") == {"a": math.inf}


def test_a_full_queue_refuses_with_the_expected_wait() -> None:
    found = refusal(8, max_waiting=8, expected_secs=12.0, load_secs=1.0)
    assert found is not None
    assert found.full
    assert found.retry_after == 12.0
    assert refusal(7, max_waiting=8, expected_secs=12.0, load_secs=1.0) is None


def test_a_deadline_that_no_load_can_meet_refuses_at_once() -> None:
    found = refusal(0, max_waiting=8, expected_secs=0.2, load_secs=5.0, deadline_secs=1.0)
    assert found is not None
    assert not found.full
    assert found.retry_after == 1.0


def test_a_deadline_that_is_only_expected_to_be_missed_is_waited_for() -> None:
    assert refusal(0, max_waiting=8, expected_secs=9.0, load_secs=0.5, deadline_secs=1.0) is None
