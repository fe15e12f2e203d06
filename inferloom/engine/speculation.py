"""Speculation as policy: how many drafted tokens are worth verifying, from how often they hold and what they cost.

Drafts never change an answer, only how many steps it takes, so everything here may be an estimate. Plain values in,
decisions out: no tensors, no clock.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from heapq import heapify, heapreplace

MARGIN = 1.02  # a step must bring that much more per second than one without drafts
STALL = 8  # rows looked at beyond the best number found: a kernel's cost has plateaus of 4 and 8 rows
FRESH = 256  # steps after which a measured cost is forgotten, so that one bad measurement does not stay
FIRST_SLOPE = 0.03  # of a step's time, for each further row, as long as nothing was measured


class Acceptance:
    """How often a drafted token holds, given that those before it did: an average over the last `window` or so.

    `chance` starts as what `prior` says, counted as two observations.
    """

    __slots__ = ("_decay", "_held", "_tried", "chance")

    def __init__(self, prior: float = 0.5, *, window: float = 20.0) -> None:
        self._decay = 1.0 - 1.0 / window
        self._held, self._tried = 2.0 * prior, 2.0
        self.chance = prior

    def observe(self, drafted: int, accepted: int) -> None:
        """Of `drafted` tokens the first `accepted` held; those after the first that did not say nothing."""
        tried = min(drafted, accepted + 1)
        decay = self._decay**tried
        self._held = self._held * decay + accepted
        self._tried = self._tried * decay + tried
        self.chance = self._held / self._tried


class Average:
    """A moving average of seconds; 0 before the first. A pause of the machine counts as twice the usual at most."""

    __slots__ = ("_count", "value")

    def __init__(self) -> None:
        self._count = 0
        self.value = 0.0

    def observe(self, seconds: float) -> None:
        self._count = min(self._count + 1, 10)
        if self._count > 1:
            seconds = min(seconds, 2 * self.value)
        self.value += (seconds - self.value) / self._count


class StepCosts:
    """Seconds of a step by its number of rows: moving averages, interpolated between the measured numbers."""

    def __init__(self) -> None:
        self._averages: dict[int, Average] = {}
        self._last: dict[int, int] = {}
        self._steps = 0
        self._rows: list[int] = []  # measured ones, ascending

    def observe(self, rows: int, seconds: float) -> None:
        """A step that computed `rows` rows, none of them a prompt's, took so long."""
        self._steps += 1
        size = _size(rows)
        known = self._averages.get(size)
        average = known if known is not None else self._averages.setdefault(size, Average())
        average.observe(seconds)
        self._last[size] = self._steps
        if known is None or self._steps % 64 == 0:
            self._forget()

    def seconds(self, rows: int) -> float:
        """What a step of `rows` rows is expected to take; 0 before anything was measured."""
        known, size = self._rows, _size(rows)
        if not known:
            return 0.0
        place = bisect_left(known, size)
        if place < len(known) and known[place] == size:
            return self._averages[size].value
        if 0 < place < len(known):
            low, high = known[place - 1], known[place]
            share = (size - low) / (high - low)
            return self._averages[low].value * (1 - share) + self._averages[high].value * share
        if place == 0:
            nearest = known[0]
            return self._averages[nearest].value / (1 + FIRST_SLOPE * (nearest - size))
        last = known[-1]
        most = self._averages[last].value
        slope = FIRST_SLOPE * most
        if len(known) > 1:
            before = known[-2]
            slope = max(0.0, (most - self._averages[before].value) / (last - before))
        return most + slope * (size - last)

    def _forget(self) -> None:
        for size in [s for s, step in self._last.items() if self._steps - step > FRESH]:
            del self._averages[size], self._last[size]
        self._rows = sorted(self._averages)


def draft_lengths(
    chances: Sequence[float],
    limits: Sequence[int],
    *,
    rows: int,
    room: int,
    seconds: Callable[[int], float],
) -> list[int]:
    """How many drafted tokens of each proposal to verify, so that the step brings the most tokens per second.

    `chances[i]`: that a token of proposal i holds if those before it do; `limits[i]`: its length. `rows`: of the step
    without drafts, each of which brings a token; `room`: the most rows that may be added. `seconds(rows)`: of a step.

    The j-th token of a draft brings chance**j tokens for one row more, so rows are given to the likeliest token next.
    """
    lengths = [0] * len(chances)
    best = list(lengths)
    heap = [(-chance, i) for i, (chance, limit) in enumerate(zip(chances, limits, strict=True)) if limit > 0]
    if not heap or room < 1:
        return lengths
    heapify(heap)
    alone = seconds(rows)
    rate = MARGIN * rows / alone if alone > 0 else 0.0
    tokens, since = float(rows), 0
    for added in range(1, room + 1):
        gain, i = heap[0]
        tokens -= gain
        lengths[i] += 1
        cost = seconds(rows + added)
        reached = tokens / cost if cost > 0 else float(added)
        if reached > rate:
            rate, since, best = reached, 0, list(lengths)
        else:
            since += 1
            if since > STALL:
                break
        heapreplace(heap, (gain * chances[i] if lengths[i] < limits[i] else 0.0, i))
        if heap[0][0] >= 0.0:
            break
    return best


def common_length(
    chances: Sequence[float], *, most: int, rows: int, seconds: Callable[[int], float], drafting: float
) -> int:
    """How many tokens a draft model should draft for each of its sequences, up to `most`; 0 where it does not pay.

    Arguments as of `draft_lengths`; `drafting`: seconds of one round of the draft model, a token for all of them.
    """
    alone = seconds(rows)
    best, rate = 0, MARGIN * rows / alone if alone > 0 else 0.0
    tokens, gains = float(rows), [1.0] * len(chances)
    for length in range(1, most + 1):
        gains = [gain * chance for gain, chance in zip(gains, chances, strict=True)]
        tokens += sum(gains)
        cost = seconds(rows + length * len(chances)) + length * drafting
        if cost <= 0 or tokens / cost > rate:
            best, rate = length, tokens / cost if cost > 0 else 0.0
    return best


def _size(rows: int) -> int:
    """The measured number of rows that stands for `rows`: exact up to 8, then four for every doubling."""
    if rows <= 8:
        return rows
    step = 1 << ((rows - 1).bit_length() - 3)
    return -(-rows // step) * step
