"""Which waiting model is loaded next, who has to yield for it, and how long that will take: pure functions.

More models are wanted than fit: loading in order of arrival would swap at every request. So requests wait grouped by
model, a load serves the whole group, and a model that was loaded keeps its place until it has served a multiple of
what its load cost. Aging bounds both: who has waited longer than the policy's patience is next, the longest waiting
first, and everybody yields to it.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Sequence
from typing import Literal

import msgspec
from msgspec import structs

from inferloom.catalog.eviction import Resident, Victim, victims

Policy = Literal["latency", "throughput"]


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What the policies differ in."""

    quantum: float  # a busy model yields after serving this many times its load
    patience_secs: float  # who has waited this long …
    patience_rounds: float  # … and this many times what loading everybody who waits takes, is next;
    patience_most: float  # or simply this long


TERMS: dict[Policy, Terms] = {
    "latency": Terms(quantum=4.0, patience_secs=5.0, patience_rounds=4.0, patience_most=60.0),
    "throughput": Terms(quantum=16.0, patience_secs=60.0, patience_rounds=16.0, patience_most=600.0),
}


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """The requests that wait for one model to be loaded."""

    model: str
    requests: int
    oldest_secs: float  # how long the first of them has waited
    need_bytes: int
    load_secs: float  # measured, else estimated from its bytes
    priority: int = 0
    excludes: frozenset[str] = frozenset()  # ids of residents that may not stay beside it (groups)


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """Load `model` in the room that `victims` make."""

    model: str
    victims: list[Victim]

    @property
    def yielding(self) -> list[str]:
        """Who gets no more leases, since it ends as soon as those it has are given back."""
        return [victim.id for victim in self.victims if victim.ends and victim.resident.leased]

    @property
    def ready(self) -> bool:
        """Whether the load can begin now; otherwise when nobody of `yielding` is leased any more."""
        return not self.yielding


def next_load(
    waiting: Sequence[Waiting],
    residents: Sequence[Resident],
    *,
    free: int,
    policy: Policy,
    now_excluded: Collection[str] = (),
    seats: int | None = None,
) -> Decision | None:
    """What to do for the models that wait for memory of one device.

    Asked again whenever a lease ends, a request comes or goes, a load is over, or `look_again_secs` have passed: a
    decision holds until the next one, and who was yielding before and is not any more goes on. `now_excluded`:
    residents that cannot make room now, since they are being loaded or on their way out. `free` may count the bytes of
    the latter: then a decision that is ready still waits for them. `seats`: how many more models may be loaded
    (`max_loaded`), None without a limit. A higher priority goes first and waits for no quantum of a lower one; whom
    patience ran out for goes before both.

    None: the residents go on with their work, because nobody waits, or because what is leased has not served its
    quantum and nobody has waited too long. Whoever can be loaded without waiting for a lease to end is.
    """
    patience = patience_secs(waiting, policy=policy)
    ordered = in_order(waiting, policy=policy)
    least = 0 if seats is None else max(0, 1 - seats)

    def room_for(one: Waiting, present: Sequence[Resident]) -> list[Victim] | None:
        return victims(
            present,
            need=one.need_bytes,
            free=free,
            now_excluded=now_excluded,
            forced=one.excludes,
            least=least,
        )

    for one in ordered:
        found = room_for(one, residents)
        if found is None and one.oldest_secs >= patience:
            # its room is kept for it: whoever could be loaded meanwhile would take what it waits for
            found = _as_they_are(room_for(one, _opened(residents, residents)), residents)
        if found is not None:
            return Decision(model=one.model, victims=found)
    quantum = TERMS[policy].quantum
    for one in ordered:
        able = [r for r in residents if _quantum_left(r, quantum) <= 0 or r.priority < one.priority]
        found = _as_they_are(room_for(one, _opened(residents, able)), residents)
        if found is not None:
            return Decision(model=one.model, victims=found)
    return None


def in_order(waiting: Sequence[Waiting], *, policy: Policy) -> list[Waiting]:
    """Whose turn is first: those whom patience ran out for, by age; then by priority; then by how many have waited for how
    long, over the square root of the load's seconds: without that one long load after the other comes first, with the
    seconds themselves it comes last (docs/decisions/050)."""
    patience = patience_secs(waiting, policy=policy)

    def rank(one: Waiting) -> tuple[float, ...]:
        if one.oldest_secs >= patience:
            return (0, -one.oldest_secs)
        load = max(one.load_secs, 1e-3)
        return (1, -one.priority, -one.requests * one.oldest_secs / math.sqrt(load), -one.requests)

    return sorted(waiting, key=lambda one: (rank(one), one.model))


def patience_secs(waiting: Sequence[Waiting], *, policy: Policy) -> float:
    """How long a request waits before its model is next whatever else would be better. It grows with what all loads
    that are asked for take, since nobody can be served faster than in that time, up to a limit."""
    terms = TERMS[policy]
    rounds = terms.patience_rounds * sum(one.load_secs for one in waiting)
    return min(max(terms.patience_secs, rounds), terms.patience_most)


def look_again_secs(waiting: Sequence[Waiting], residents: Sequence[Resident], *, policy: Policy) -> float:
    """When time alone may change what `next_load` says: a quantum is served or a patience runs out. Infinite where
    it cannot."""
    if not waiting:
        return math.inf
    quantum = TERMS[policy].quantum
    patience = patience_secs(waiting, policy=policy)
    moments = [_quantum_left(resident, quantum) for resident in residents if resident.leased]
    moments += [patience - one.oldest_secs for one in waiting]
    return min((moment for moment in moments if moment > 0), default=math.inf)


def expected_waits(
    waiting: Sequence[Waiting],
    residents: Sequence[Resident],
    *,
    free: int,
    policy: Policy,
    busy_secs: float = 0.0,
    lease_secs: float = math.inf,
    now_excluded: Collection[str] = (),
) -> dict[str, float]:
    """Seconds until each waiting model is loaded, an estimate: one load after the other in the policy's order, the
    first after `busy_secs`, each as soon as those before it have served their quantum, or have no leases after
    `lease_secs` (what one lasts typically), where there is no room for both. Infinite for what finds no room whoever
    yields. Leases that last longer make it longer, and requests that come meanwhile change the order."""
    quantum = TERMS[policy].quantum
    room = free
    leaving: list[tuple[float, int]] = []  # when it may go, and its bytes
    for resident in residents:
        if resident.id in now_excluded or resident.pinned:
            continue
        if resident.leased:
            leaving.append((min(max(0.0, _quantum_left(resident, quantum)), lease_secs), resident.bytes))
        else:
            room += resident.bytes
    heapq.heapify(leaving)
    found = {}
    now = busy_secs
    for one in in_order(waiting, policy=policy):
        while room < one.need_bytes and leaving:
            when, freed = heapq.heappop(leaving)
            now = max(now, when)
            room += freed
        if room < one.need_bytes:
            found[one.model] = math.inf
            continue
        now += one.load_secs
        room -= one.need_bytes
        heapq.heappush(leaving, (now + min(quantum * one.load_secs, lease_secs), one.need_bytes))
        found[one.model] = now
    return found


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Why a request is not let into a model's queue."""

    full: bool  # the queue (429); otherwise the deadline cannot be met (503)
    retry_after: float  # seconds


def refusal(
    queued: int, *, max_waiting: int, expected_secs: float, load_secs: float, deadline_secs: float = math.inf
) -> Refusal | None:
    """Whether a request may wait for a model that `queued` others wait for; None: it may.

    `expected_secs`: until the model is loaded (`expected_waits`); `load_secs`: that alone, were it begun now. A queue
    that is full refuses, and so does a deadline that is over before even a load begun now would be: an answer at
    once is worth more than the same one later. A deadline that is only expected to be missed is waited for.
    """
    if queued >= max_waiting:
        return Refusal(full=True, retry_after=max(1.0, expected_secs))
    if deadline_secs < load_secs:
        return Refusal(full=False, retry_after=max(1.0, expected_secs))
    return None


def _quantum_left(resident: Resident, quantum: float) -> float:
    return quantum * resident.reload_secs - resident.served_secs


def _opened(residents: Sequence[Resident], able: Collection[Resident]) -> list[Resident]:
    """The residents as if those `able` to yield had no leases.

    Who yields already costs nothing more: otherwise the requests that gather before it would make it dear, somebody
    else would yield instead, and at the next request somebody else again, so that nobody's leases ever end.
    """
    names = {resident.id for resident in able}
    opened = []
    for resident in residents:
        if resident.yielding:
            resident = structs.replace(resident, leased=False, reload_secs=0.0)
        elif resident.id in names:
            resident = structs.replace(resident, leased=False)
        opened.append(resident)
    return opened


def _as_they_are(found: list[Victim] | None, residents: Sequence[Resident]) -> list[Victim] | None:
    if found is None:
        return None
    known = {resident.id: resident for resident in residents}
    return [structs.replace(victim, resident=known[victim.id]) for victim in found]
