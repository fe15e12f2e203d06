"""A machine on a fake clock: memory of one device, one load at a time, and a policy that decides."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from inferloom.catalog.eviction import Demand
from simulator.traces import Model, Request, Trace


@dataclass(slots=True)
class Loaded:
    """A model in memory."""

    model: Model
    ready_at: float
    running: int = 0
    line: deque[Request] = field(default_factory=deque)  # has a lease, no place yet
    used_at: float = 0.0  # last lease's end

    @property
    def leases(self) -> int:
        return self.running + len(self.line)


@dataclass(frozen=True, slots=True)
class Order:
    """Load `model` once nobody holds a lease on `victims` any more; until then they get no new ones."""

    model: str
    victims: Collection[str]


class Policy(Protocol):
    name: str
    in_line: bool  # whether requests behind one whose load has not begun wait too, whatever is loaded

    def decide(self, machine: Machine) -> Order | None:
        """Asked whenever something has happened, somebody waits and no load is in progress."""

    def look_again_secs(self, machine: Machine) -> float:
        """When to ask again though nothing has happened."""


@dataclass(frozen=True, slots=True)
class Outcome:
    makespan: float  # seconds from the first request's coming to the last one's end
    waits: list[float]  # seconds without a place, by request
    loads: int
    loading_secs: float
    peak: int  # bytes


class Stuck(Exception):
    """The policy leaves requests waiting for ever."""


class Machine:
    """Runs one trace under one policy."""

    def __init__(self, trace: Trace, policy: Policy) -> None:
        self.trace = trace
        self.policy = policy
        self.now = 0.0
        self.loaded: dict[str, Loaded] = {}
        self.waiting: list[Request] = []  # in order of arrival, without a lease
        self.demands = {name: Demand() for name in trace.models}
        self.loading: str | None = None
        self.closed: Collection[str] = ()
        self._events: list[tuple[float, int, str, object]] = []
        self._sequence = 0
        self._look_at = math.inf
        self._ended_at = 0.0
        self._waits = [math.nan] * len(trace.requests)
        self._loads = 0
        self._loading_secs = 0.0
        self._peak = 0

    @property
    def free(self) -> int:
        return self.trace.budget - sum(one.model.bytes for one in self.loaded.values())

    def run(self) -> Outcome:
        """Until every request has ended. Raises `Stuck`."""
        for request in self.trace.requests:
            self._at(request.at, "comes", request)
        while self._events:
            when, _, what, about = heapq.heappop(self._events)
            if what == "looks" and when != self._look_at:
                continue  # asked since then
            self.now = when
            if what == "comes":
                assert isinstance(about, Request)
                self.demands[about.model].note(self.now)
                self.waiting.append(about)
            elif what == "loaded":
                self.loading = None
            elif what == "ends":
                assert isinstance(about, str)
                self._end(self.loaded[about])
            self._advance()
        if self.waiting:
            raise Stuck(f"{self.policy.name}: {len(self.waiting)} requests wait for ever ({self.trace.seed})")
        return Outcome(
            makespan=self._ended_at - self.trace.requests[0].at,
            waits=self._waits,
            loads=self._loads,
            loading_secs=self._loading_secs,
            peak=self._peak,
        )

    def ready(self) -> list[Loaded]:
        return [one for name, one in self.loaded.items() if name != self.loading]

    def _advance(self) -> None:
        """Leases and loads, until nothing more can be done at this moment."""
        while True:
            self._lease()
            if self.loading is not None or not self.waiting:
                return
            order = self.policy.decide(self)
            self.closed = order.victims if order else ()
            if order is None or any(self.loaded[name].leases for name in order.victims):
                self._lease()
                again = self.policy.look_again_secs(self)
                self._look_at = self.now + again + 1e-6
                if again < math.inf:
                    self._at(self._look_at, "looks", None)
                return
            self._load(order)

    def _lease(self) -> None:
        left: list[Request] = []
        for index, request in enumerate(self.waiting):
            one = self.loaded.get(request.model)
            if one is not None and request.model != self.loading and request.model not in self.closed:
                one.line.append(request)
                self._place(one)
                continue
            left.append(request)
            if self.policy.in_line and one is None:
                left += self.waiting[index + 1 :]
                break
        self.waiting = left

    def _place(self, one: Loaded) -> None:
        while one.line and one.running < self.trace.places:
            request = one.line.popleft()
            one.running += 1
            self._waits[request.number] = self.now - request.at
            self._at(self.now + request.secs, "ends", one.model.name)

    def _end(self, one: Loaded) -> None:
        one.running -= 1
        one.used_at = self._ended_at = self.now
        self._place(one)

    def _load(self, order: Order) -> None:
        for name in order.victims:
            assert not self.loaded[name].leases
            del self.loaded[name]
        model = self.trace.models[order.model]
        assert order.model not in self.loaded and self.free >= model.bytes, "the budget holds"
        self.closed = ()
        self.loading = order.model
        self.loaded[order.model] = Loaded(model, self.now + model.load_secs, used_at=self.now)
        self._loads += 1
        self._loading_secs += model.load_secs
        self._peak = max(self._peak, self.trace.budget - self.free)
        self._at(self.now + model.load_secs, "loaded", None)

    def _at(self, when: float, what: str, about: object) -> None:
        self._sequence += 1
        heapq.heappush(self._events, (when, self._sequence, what, about))


def leaving(loaded: Sequence[Loaded], need: int, free: int) -> list[str]:
    """The first of `loaded` whose bytes make room for `need`."""
    found = []
    for one in loaded:
        if free >= need:
            break
        found.append(one.model.name)
        free += one.model.bytes
    return found
