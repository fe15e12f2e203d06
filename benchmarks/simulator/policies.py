"""Ours, and what others do."""

from __future__ import annotations

import math

from inferloom.catalog import admission
from inferloom.catalog.admission import Waiting, next_load
from inferloom.catalog.eviction import Resident
from simulator.machine import Loaded, Machine, Order, leaving


class Ours:
    """The catalog's policies themselves."""

    in_line = False

    def __init__(self, policy: admission.Policy) -> None:
        self.name = f"inferloom, {policy}"
        self.policy = policy

    def decide(self, machine: Machine) -> Order | None:
        waiting, residents = _snapshot(machine)
        decision = next_load(waiting, residents, free=machine.free, policy=self.policy)
        if decision is None:
            return None
        return Order(decision.model, [victim.id for victim in decision.victims])

    def look_again_secs(self, machine: Machine) -> float:
        return admission.look_again_secs(*_snapshot(machine), policy=self.policy)


def _snapshot(machine: Machine) -> tuple[list[Waiting], list[Resident]]:
    groups: dict[str, list[float]] = {}
    for request in machine.waiting:
        groups.setdefault(request.model, []).append(request.at)
    waiting = [
        Waiting(
            model=name,
            requests=len(times),
            oldest_secs=machine.now - times[0],
            need_bytes=machine.trace.models[name].bytes,
            load_secs=machine.trace.models[name].load_secs,
        )
        for name, times in groups.items()
        if name not in machine.loaded
    ]
    residents = [
        Resident(
            id=one.model.name,
            bytes=one.model.bytes,
            idle_secs=0.0 if one.leases else machine.now - max(one.used_at, one.ready_at),
            served_secs=machine.now - one.ready_at,
            reload_secs=one.model.load_secs,
            rate=machine.demands[one.model.name].rate(machine.now),
            leased=one.leases > 0,
            yielding=one.model.name in machine.closed,
            waiting=len(groups.get(one.model.name, ())),
        )
        for one in machine.ready()
    ]
    return waiting, residents


class OnEvents:
    """Decides by what has happened alone."""

    def look_again_secs(self, machine: Machine) -> float:
        return math.inf


def _head(machine: Machine) -> str | None:
    """The model of the longest waiting request for one that is not loaded."""
    return next((r.model for r in machine.waiting if r.model not in machine.loaded), None)


class Fifo(OnEvents):
    """The longest waiting request's model is next, the least recently used leave. Requests for other loaded models
    go on meanwhile."""

    name = "FIFO, LRU by bytes"
    in_line = False

    def decide(self, machine: Machine) -> Order | None:
        head = _head(machine)
        if head is None:
            return None
        oldest_first = sorted(machine.ready(), key=_last_used)
        return Order(head, leaving(oldest_first, machine.trace.models[head].bytes, machine.free))


class ByCount(OnEvents):
    """llama.cpp's router and LocalAI: at most so many models, the least recently used leaves. The number that is
    safe whichever models they are, since bytes are not looked at; requests in progress are waited for, which
    llama.cpp does not do."""

    name = "LRU by count"
    in_line = False

    def decide(self, machine: Machine) -> Order | None:
        head = _head(machine)
        if head is None:
            return None
        sizes = sorted((model.bytes for model in machine.trace.models.values()), reverse=True)
        most = sum(1 for count in range(1, len(sizes) + 1) if sum(sizes[:count]) <= machine.trace.budget)
        over = len(machine.loaded) + 1 - most
        return Order(
            head, [one.model.name for one in sorted(machine.ready(), key=_last_used)[: max(0, over)]]
        )


class Ollama(OnEvents):
    """Its scheduler takes requests in order of arrival and waits at each until its model is loaded. Somebody idle
    leaves, else whoever has the shortest keep_alive, here the same for all; ties go by name."""

    name = "Ollama's rule"
    in_line = True

    def decide(self, machine: Machine) -> Order | None:
        head = machine.waiting[0].model
        if head in machine.loaded:
            return None
        by_name = sorted(machine.ready(), key=lambda one: (one.leases > 0, one.model.name))
        return Order(head, leaving(by_name, machine.trace.models[head].bytes, machine.free))


def _last_used(one: Loaded) -> tuple[bool, float, str]:
    """Those with leases are in use now."""
    return one.leases > 0, one.used_at, one.model.name
