"""One device's memory as the policies see it: who is there, who leaves, what is free and what is pinned."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from msgspec import structs

from inferloom.catalog.admission import Waiting
from inferloom.catalog.durations import load_secs
from inferloom.catalog.eviction import Resident
from inferloom.catalog.ledger import Kinds, Ledger
from inferloom.catalog.lifecycle import State
from inferloom.catalog.pools import Pools, comfort
from inferloom.types import Footprint

if TYPE_CHECKING:
    from inferloom.catalog.residence import Residence


class Device:
    """Looks at what is, each time it is asked; changes nothing."""

    def __init__(
        self,
        name: str,
        residences: Callable[[], Collection[Residence]],
        *,
        ledger: Ledger,
        pools: Pools,
        clock: Callable[[], float],
    ) -> None:
        self.name = name
        self._residences = residences
        self._ledger = ledger
        self._pools = pools
        self._clock = clock

    # --- bytes ------------------------------------------------------------------------------------------------------

    @property
    def there(self) -> list[Residence]:
        """All that hold memory of it."""
        return [one for one in holding(self._residences()) if one.device == self.name]

    @property
    def coming(self) -> list[Residence]:
        """Those that load and hold nothing yet."""
        return [
            one
            for one in self._residences()
            if one.device == self.name and one.state is State.LOADING and one.reservation is None
        ]

    @property
    def free(self) -> int:
        return self._ledger.free(self.name)

    @property
    def soon(self) -> int:
        """What is free once all who leave are gone."""
        return self.free + sum(self.total(one) for one in self.there if one.leaving)

    @property
    def most(self) -> int:
        """What is left for others than the pinned ones."""
        pinned = [one for one in self.there if one.pinned]
        fixed = sum(self.total(one) - self._pools.spare(one) for one in pinned)
        return self._ledger.budget(self.name) - fixed

    def total(self, one: Residence) -> int:
        return 0 if one.reservation is None else self._ledger.of(one.reservation).total

    def need(self, footprint: Footprint) -> int:
        """Bytes with which a model is loaded if it can be helped: with more pages than the fewest it can serve with."""
        return max(footprint.least, min(footprint.total(comfort(footprint)), self.most))

    def share(self, footprint: Footprint, need: int, within: int) -> Kinds:
        """What a model gets where `within` are there: as many pages as it wants, as long as others that load just now can
        have as much of what is beyond `need`."""
        pages = footprint.kv_pages
        if footprint.kv_page:
            others = sum(1 for one in self.coming if one.footprint is not footprint)
            beyond = max(0, within - need) // (1 + others)
            pages = (need + beyond - footprint.weights - footprint.workspace) // footprint.kv_page
            pages = min(max(pages, footprint.kv_least), footprint.kv_pages)
        return kinds_of(footprint, pages)

    # --- the policies' view -----------------------------------------------------------------------------------------

    def residents(self, *, everywhere: bool = False) -> list[Resident]:
        """Those that do not leave. `everywhere`: other devices' too, which bring a byte, where the number of models
        counts."""
        now = self._clock()
        found = []
        for one in holding(self._residences()):
            if one.leaving or not (everywhere or one.device == self.name):
                continue
            resident = self._resident(one, now)
            if one.device != self.name:
                resident = structs.replace(resident, device=self.name, bytes=1, shrinkable=0)
            found.append(resident)
        return found

    def _resident(self, one: Residence, now: float) -> Resident:
        ready = one.state is State.READY
        return Resident(
            id=one.key,
            device=one.device,
            bytes=self.total(one),
            idle_secs=one.holders.idle_secs,
            served_secs=now - one.since if ready else 0.0,
            reload_secs=load_secs(one.report, self.total(one)),
            rate=one.holders.rate,
            priority=one.priority,
            pinned=one.stays,
            leased=one.leases > 0
            or one.turn.let_in
            or not ready,  # what loads has yet to serve those it loads for
            yielding=one.turn.yielding,
            waiting=one.waiting,
            shrinkable=self._pools.spare(one),
        )

    def waiting(self, guest: Residence, need: int, *, since: float) -> Waiting:
        """`since`: when it asked; the requests behind it may be older."""
        return Waiting(
            model=guest.key,
            requests=guest.wanted_by,
            oldest_secs=max(guest.turn.oldest_secs, self._clock() - since),
            need_bytes=need,
            load_secs=load_secs(guest.report, need),
            priority=guest.priority,
            excludes=frozenset(one.key for one in self.excluded(guest) if not one.leaving),
        )

    def excluded(self, guest: Residence) -> list[Residence]:
        """The others of its groups, which may not stay beside it."""
        there = holding(self._residences())
        return [one for one in there if one not in (guest, guest.replaces) and one.groups & guest.groups]


def holding(residences: Collection[Residence]) -> list[Residence]:
    return [one for one in residences if one.reservation is not None]


def kinds_of(footprint: Footprint, pages: int) -> Kinds:
    return Kinds(weights=footprint.weights, kv=footprint.kv_page * pages, workspace=footprint.workspace)
