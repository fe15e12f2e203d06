"""What is counted of requests: those that wait, those that hold a model, how often they come and how long they stay."""

from __future__ import annotations

import math

import pytest

from inferloom.catalog.leases import Leases, mean_secs
from inferloom.catalog.line import Line


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_who_is_let_in_counts_until_it_has_its_lease(clock: Clock) -> None:
    line = Line(clock)
    first = line.join()
    clock.now += 2.0
    second = line.join()
    assert (len(line), line.admitted, line.oldest_secs) == (2, 0, 2.0)
    line.admit()
    third = line.join()  # too late for this turn
    assert (first.admitted, second.admitted, third.admitted, line.admitted) == (True, True, False, 2)
    line.leave(first)
    assert (len(line), line.admitted, line.oldest_secs) == (2, 1, 0.0)
    line.turn_back()
    line.leave(second)
    line.leave(third)
    assert (len(line), line.admitted, line.oldest_secs) == (0, 0, 0.0)


def test_what_leases_last_is_told_from_their_number_over_time(clock: Clock) -> None:
    leases = Leases(clock)
    assert mean_secs([leases]) == math.inf
    leases.take()
    clock.now += 1.0
    leases.take()
    clock.now += 2.0
    leases.give_back()
    leases.give_back()
    assert (leases.count, leases.ended, leases.seconds) == (0, 2, 5.0)
    assert mean_secs([leases, Leases(clock)]) == 2.5


def test_it_is_idle_since_its_last_lease_or_its_load(clock: Clock) -> None:
    leases = Leases(clock)
    leases.take()
    clock.now += 3.0
    assert leases.idle_secs == 0.0 and not leases.idle.is_set()
    leases.give_back()
    clock.now += 4.0
    assert leases.idle_secs == 4.0 and leases.idle.is_set()
    leases.begin()
    assert leases.idle_secs == 0.0


def test_the_rate_of_requests_fades(clock: Clock) -> None:
    leases = Leases(clock)
    assert leases.rate == 0.0
    for _ in range(30):
        leases.asked()
    busy = leases.rate
    clock.now += 600.0
    assert 0.0 < leases.rate < busy / 5
