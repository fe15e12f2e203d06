"""Who gives memory back, and that nobody does in vain."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from inferloom.catalog.eviction import EXACT, MEMORY, Demand, Resident, Victim, victims

GIB = 1 << 30


def resident(id_: str, size: int, **facts: object) -> Resident:
    return Resident(id=id_, bytes=size, **{"reload_secs": 1.0, **facts})  # type: ignore[arg-type]


def names(found: list[Victim] | None) -> list[str]:
    assert found is not None
    return [victim.id for victim in found]


@st.composite
def residents(draw: st.DrawFn, most: int = 6) -> list[Resident]:
    found = []
    for index in range(draw(st.integers(0, most))):
        size = draw(st.integers(1, 40))
        found.append(
            Resident(
                id=f"m{index}",
                bytes=size,
                idle_secs=draw(st.sampled_from([0.0, 1.0, 30.0, 600.0, 1e6])),
                reload_secs=draw(st.sampled_from([0.0, 0.1, 1.0, 30.0])),
                rate=draw(st.sampled_from([0.0, 0.01, 1.0])),
                priority=draw(st.integers(-2, 2)),
                pinned=draw(st.booleans()) and draw(st.booleans()),
                leased=draw(st.booleans()) and draw(st.booleans()),
                waiting=draw(st.sampled_from([0, 0, 0, 3])),
                shrinkable=draw(st.integers(0, size)) if draw(st.booleans()) else 0,
            )
        )
    return draw(st.permutations(found))


def cost(present: list[Resident], chosen: list[Victim]) -> float:
    """The objective of `victims`, written down once more."""
    levels = sorted({r.priority for r in present})
    total = 0.0
    for victim in chosen:
        loss = max(victim.resident.loss(), 1e-9)
        if victim.ends:
            total += loss * 1e9 ** levels.index(victim.resident.priority)
        else:
            total += loss / 50 * victim.bytes / victim.resident.bytes
    return total


def every_choice(present: list[Resident], shortage: int) -> list[list[Victim]]:
    """All sets of ended residents that can be completed to `shortage` bytes with spare KV, cheapest spare first."""
    able = [r for r in present if not r.pinned and not r.leased]
    found = []
    for count in range(len(able) + 1):
        for ended in combinations(able, count):
            choice = [Victim(resident=r, bytes=r.bytes, ends=True) for r in ended]
            missing = shortage - sum(r.bytes for r in ended)
            for r in sorted(
                (r for r in present if r not in ended), key=lambda r: max(r.loss(), 1e-9) / r.bytes
            ):
                part = min(max(missing, 0), r.shrinkable)
                if part:
                    choice.append(Victim(resident=r, bytes=part, ends=False))
                    missing -= part
            if missing <= 0:
                found.append(choice)
    return found


@given(residents(), st.integers(0, 150), st.integers(0, 60))
def test_what_is_freed_is_enough_and_nobody_protected_ends(
    present: list[Resident], need: int, free: int
) -> None:
    found = victims(present, need=need, free=free)
    if found is None:
        assert not every_choice(present, need - free)
        return
    assert sum(v.bytes for v in found) >= need - free
    assert len(set(names(found))) == len(found)
    for victim in found:
        if victim.ends:
            assert not victim.resident.pinned and not victim.resident.leased
            assert victim.bytes == victim.resident.bytes
        else:
            assert 0 < victim.bytes <= victim.resident.shrinkable


@given(residents(), st.integers(1, 150))
def test_no_choice_is_cheaper(present: list[Resident], need: int) -> None:
    found = victims(present, need=need, free=0)
    if found is not None:
        best = min(cost(present, choice) for choice in every_choice(present, need))
        assert cost(present, found) <= best * (1 + 1e-9) + 1e-7


@given(residents(most=24), st.integers(1, 300))
def test_no_victim_is_superfluous_however_many_there_are(present: list[Resident], need: int) -> None:
    found = victims(present, need=need, free=0)
    for victim in found or []:
        if victim.ends:
            others = sum(v.bytes for v in found or [] if v is not victim)
            assert others < need


@given(residents(most=24), st.integers(1, 300), st.randoms(use_true_random=False))
def test_the_order_of_the_residents_does_not_matter(
    present: list[Resident], need: int, random: object
) -> None:
    found = victims(present, need=need, free=0)
    random.shuffle(present)  # type: ignore[attr-defined]
    assert victims(present, need=need, free=0) == found


@given(residents(), st.integers(1, 150))
def test_those_excluded_now_are_not_touched(present: list[Resident], need: int) -> None:
    excluded = {r.id for r in present[::2]}
    found = victims(present, need=need, free=0, now_excluded=excluded)
    assert found is None or not excluded & set(names(found))


def test_where_there_is_room_nobody_gives_anything() -> None:
    assert victims([resident("a", 5)], need=3, free=3) == []


def test_where_all_is_not_enough_there_is_no_answer() -> None:
    present = [resident("a", 5, pinned=True), resident("b", 5, leased=True), resident("c", 2)]
    assert victims(present, need=3, free=0) is None


def test_spare_kv_is_taken_before_a_model_ends_even_from_the_leased_and_the_pinned() -> None:
    present = [
        resident("pinned", 10, pinned=True, shrinkable=4),
        resident("leased", 10, leased=True, shrinkable=4),
        resident("idle", 10, idle_secs=300.0),
    ]
    found = victims(present, need=7, free=0)
    assert names(found) == ["leased", "pinned"]
    assert sum(v.bytes for v in found or []) == 7


def test_the_longest_idle_of_equals_ends() -> None:
    present = [resident("a", 4, idle_secs=5.0), resident("b", 4, idle_secs=50.0), resident("c", 4)]
    assert names(victims(present, need=4, free=0)) == ["b"]


def test_what_loads_quickly_ends_before_what_loads_slowly() -> None:
    present = [resident("slow", 4, reload_secs=30.0), resident("quick", 4, reload_secs=0.2)]
    assert names(victims(present, need=4, free=0)) == ["quick"]


def test_what_is_asked_for_often_stays() -> None:
    present = [
        resident("often", 4, rate=1.0, idle_secs=20.0),
        resident("rarely", 4, rate=0.001, idle_secs=10.0),
    ]
    assert names(victims(present, need=4, free=0)) == ["rarely"]


def test_requests_that_wait_keep_a_model() -> None:
    present = [resident("wanted", 4, idle_secs=1e5, waiting=2), resident("recent", 4)]
    assert names(victims(present, need=4, free=0)) == ["recent"]


def test_a_lower_priority_ends_first_however_busy_it_is() -> None:
    present = [
        resident("high", 4, priority=1, idle_secs=600.0),
        resident("low", 4, reload_secs=20.0, rate=1.0),
    ]
    assert names(victims(present, need=4, free=0)) == ["low"]


def test_a_big_model_does_not_end_for_a_little_memory() -> None:
    present = [
        resident("big", 10 * GIB, reload_secs=8.0, idle_secs=30.0),
        resident("small", GIB // 4, reload_secs=0.3, idle_secs=20.0),
    ]
    assert names(victims(present, need=GIB // 10, free=0)) == ["small"]


def test_one_that_is_enough_spares_two() -> None:
    """The cheapest bytes first would end the two small ones, and then the big one all the same."""
    present = [resident("a", 2, reload_secs=0.1), resident("b", 2, reload_secs=0.1), resident("big", 10)]
    assert names(victims(present, need=8, free=0)) == ["big"]


def test_a_crowd_is_decided_greedily_and_without_superfluous_victims() -> None:
    crowd = [resident(f"m{index:02}", 1 + index, idle_secs=float(index)) for index in range(EXACT + 10)]
    found = victims(crowd, need=40, free=0)
    assert found is not None
    assert all(sum(v.bytes for v in found if v is not one) < 40 for one in found)


def test_those_who_have_to_go_count_and_the_rest_is_chosen() -> None:
    present = [resident("a", 4, reload_secs=9.0), resident("b", 4), resident("c", 4, reload_secs=0.1)]
    assert names(victims(present, need=4, free=0, forced=["a"])) == ["a"]
    assert names(victims(present, need=6, free=0, forced=["a"])) == ["a", "c"]
    assert names(victims(present, need=0, free=9, forced=["b"])) == ["b"]


def test_who_has_to_go_and_cannot_stops_it() -> None:
    for facts in ({"pinned": True}, {"leased": True}):
        assert victims([resident("a", 4, **facts)], need=0, free=9, forced=["a"]) is None


@given(residents(), st.integers(0, 100), st.integers(0, 4))
def test_where_so_many_have_to_go_the_cheapest_do(present: list[Resident], need: int, least: int) -> None:
    found = victims(present, need=need, free=0, least=least)
    choices = [c for c in every_choice(present, need) if sum(v.ends for v in c) >= least]
    if found is None:
        assert not choices
    else:
        assert sum(v.ends for v in found) >= least
        assert cost(present, found) <= min(cost(present, c) for c in choices) * (1 + 1e-9) + 1e-7


def test_demand_is_forgotten_over_the_memory() -> None:
    demand = Demand()
    for second in range(3000):
        demand.note(float(second))
    assert 0.95 < demand.rate(3000.0) < 1.05
    assert demand.rate(3000.0 + MEMORY) < 0.4 * demand.rate(3000.0)
    assert demand.rate(3000.0 + 20 * MEMORY) < 1e-8
