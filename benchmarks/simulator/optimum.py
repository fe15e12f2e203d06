"""The best schedule of a small trace, by trying all that can be best: what knowing the future is worth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations, product
from typing import Literal

from simulator.traces import Request, Trace

Goal = Literal["wait", "makespan"]


def optimum(trace: Trace, goal: Goal, *, known: float) -> float:
    """The least possible sum of waits or makespan (seconds), where `known` has been reached by somebody.

    The rules are the machine's: one load at a time, a request keeps its place until it has ended, a model ends when
    nobody has a place in it, and nobody yields to a load before the one in progress is over. A schedule is a sequence of loads: which model, in whose place, and for each of those,
    after which of its requests it takes no more. Loading earlier than at the first possible moment, taking out more
    than is needed or holding a request back that a model could serve never helps, so nothing better is left out.
    There are as many places as requests.
    """
    assert len(trace.requests) <= trace.places
    search = _Search(trace, goal, known)
    first = trace.requests[0].at
    search.descend(first, {}, tuple(trace.requests), waited=0.0, last=first)
    return search.best


class _Search:
    def __init__(self, trace: Trace, goal: Goal, known: float) -> None:
        self._trace = trace
        self._goal = goal
        self.best = known

    def descend(
        self,
        now: float,
        busy: Mapping[str, float],
        left: tuple[Request, ...],
        *,
        waited: float,
        last: float,
    ) -> None:
        """Go on from a moment at which the loader is free: `busy` has the models in memory and when their last
        request so far ends, `left` the requests without a place, `waited` and `last` what was spent."""
        wanted = {request.model for request in left} - set(busy)
        if not wanted:
            ends = [last, *(request.at + request.secs for request in left)]
            self._note(waited, max(ends))
            return
        if self._bound(now, waited, last, left, wanted) >= self.best:
            return
        for name in sorted(wanted):
            model = self._trace.models[name]
            for victims in self._victims(busy, model.bytes):
                for stops in product(*(self._stops(victim, left, now) for victim in victims)):
                    self._load(now, name, dict(zip(victims, stops, strict=True)), busy, left, waited, last)

    def _load(
        self,
        now: float,
        name: str,
        stops: Mapping[str, float],
        busy: Mapping[str, float],
        left: tuple[Request, ...],
        waited: float,
        last: float,
    ) -> None:
        """Load `name` where each of `stops` leaves, which serves what comes until then."""
        ends = dict(busy)
        rest = []
        for request in left:
            if request.model in stops and request.at <= stops[request.model]:
                ends[request.model] = max(ends[request.model], request.at + request.secs)
                last = max(last, request.at + request.secs)
            else:
                rest.append(request)
        begun = max([now, *stops.values(), *(ends[victim] for victim in stops)])
        done = begun + self._trace.models[name].load_secs
        after = {one: end for one, end in ends.items() if one not in stops}
        kept = []
        after[name] = done
        for request in rest:
            if request.model in after and request.at <= done:
                start = max(request.at, done) if request.model == name else request.at
                waited += start - request.at
                after[request.model] = max(after[request.model], start + request.secs)
                last = max(last, start + request.secs)
            else:
                kept.append(request)
        self.descend(done, after, tuple(kept), waited=waited, last=last)

    def _victims(self, busy: Mapping[str, float], need: int) -> Iterator[tuple[str, ...]]:
        """Every set of models whose leaving makes room, none of whom could stay."""
        sizes = {name: self._trace.models[name].bytes for name in busy}
        missing = need - (self._trace.budget - sum(sizes.values()))
        for count in range(len(busy) + 1):
            for chosen in combinations(sorted(busy), count):
                total = sum(sizes[name] for name in chosen)
                if total >= missing and all(total - sizes[name] < missing for name in chosen):
                    yield chosen

    def _stops(self, victim: str, left: tuple[Request, ...], now: float) -> list[float]:
        return [now, *(request.at for request in left if request.model == victim and request.at > now)]

    def _bound(
        self, now: float, waited: float, last: float, left: tuple[Request, ...], wanted: set[str]
    ) -> float:
        """What cannot be avoided any more: each wanted model's first request waits for its own load at least."""
        loads = self._trace.models
        starts = {
            request.number: max(request.at, now + loads[request.model].load_secs)
            if request.model in wanted
            else request.at
            for request in left
        }
        if self._goal == "wait":
            return waited + sum(starts[request.number] - request.at for request in left)
        return max([last, *(starts[r.number] + r.secs for r in left)]) - self._trace.requests[0].at

    def _note(self, waited: float, last: float) -> None:
        value = waited if self._goal == "wait" else last - self._trace.requests[0].at
        self.best = min(self.best, value)
