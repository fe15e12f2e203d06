"""Where models ask for room: who may load now, who has to go for it, and who must be refused.

Loads ask once their footprint is known and hold nothing while they wait, so that no two can wait for each other. Every
change (a lease that ends, a worker that is gone, a new budget) has all who wait looked at again, in the order of
priority and then of asking; the bytes that an earlier one waits for are not given to a later one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

import msgspec

from inferloom.catalog.eviction import Resident, victims
from inferloom.catalog.holdings import table
from inferloom.catalog.ledger import Kinds, Ledger
from inferloom.errors import InferloomError, ModelUnavailable, OutOfMemory
from inferloom.types import Footprint

if TYPE_CHECKING:
    from inferloom.catalog.residence import Residence

log = logging.getLogger("inferloom.catalog")

COMFORT = 4  # a model is squeezed to this part of the pages it wants before another one has to go for it


class NoRoom(OutOfMemory):
    """The ledger's refusal. `insisted`: somebody waits for the model, so that others would have been unloaded for it."""

    def __init__(self, detail: str, *, insisted: bool) -> None:
        super().__init__(detail)
        self.insisted = insisted


class Ask(msgspec.Struct, frozen=True, eq=False):
    """A load that waits for room."""

    guest: Residence
    footprint: Footprint
    granted: asyncio.Future[None]
    number: int


class Decision(msgspec.Struct, frozen=True):
    """What is to be done for one ask: grant `kinds`, have `ended` go, refuse with `error`; none of these is to wait."""

    kinds: Kinds | None = None
    ended: tuple[Residence, ...] = ()
    error: InferloomError | None = None


WAIT = Decision()


class Arbiter:
    """The one place where residences ask for room. Used from one event loop."""

    def __init__(
        self,
        ledger: Ledger,
        residences: Callable[[], Collection[Residence]],
        *,
        max_loaded: int | None,
        clock: Callable[[], float],
    ) -> None:
        self.ledger = ledger
        self._residences = residences
        self._max_loaded = max_loaded
        self._clock = clock
        self._asks: list[Ask] = []
        self._number = 0
        self._looking = False

    async def room(self, guest: Residence, footprint: Footprint) -> Kinds:
        """Returns when `guest.reservation` holds what is returned. Raises `NoRoom`; when cancelled nothing is held."""
        self._number += 1
        granted = asyncio.get_running_loop().create_future()
        ask = Ask(guest, footprint, granted, self._number)
        self._asks.append(ask)
        try:
            self._settle()
            await granted
        except BaseException:
            self.release(guest)
            raise
        finally:
            self._asks.remove(ask)
            self.changed()
        assert guest.reservation is not None
        return self.ledger.of(guest.reservation)

    def release(self, guest: Residence) -> None:
        """The memory has come back. Idempotent."""
        reservation, guest.reservation = guest.reservation, None
        if reservation is not None:
            self.ledger.release(reservation)
            self.changed()

    def set_budget(self, device: str, bytes_: int) -> None:
        """What is too much from now on is unloaded, after its requests have ended."""
        self.ledger.set_budget(device, bytes_)
        self._settle()

    def set_max_loaded(self, count: int | None) -> None:
        """From now on no more than that are loaded beside each other; what is there stays until room is asked for."""
        self._max_loaded = count
        self.changed()

    def changed(self) -> None:
        """Something ended or began: look again at all who wait, once the caller has finished what it does."""
        if not self._looking:
            self._looking = True
            asyncio.get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        self._looking = False
        self._settle()

    def queue(self) -> list[Ask]:
        """The loads that wait for room, in the order in which they are looked at."""
        open_ = [ask for ask in self._asks if not ask.granted.done()]
        return sorted(open_, key=lambda ask: (-ask.guest.priority, ask.number))

    def _settle(self) -> None:
        for device in self.ledger.devices():
            self._cut_down(device)
        earlier: list[Ask] = []
        for ask in self.queue():
            decision = self.decide(ask.guest, ask.footprint, earlier, insists=ask.guest.insists)
            for one in decision.ended:
                one.evict(f"to make room for {ask.guest.id}")
            if decision.kinds is not None:
                guest = ask.guest
                guest.reservation = self.ledger.reserve(guest.id, guest.device, decision.kinds)
                ask.granted.set_result(None)
            elif decision.error is not None:
                ask.granted.set_exception(decision.error)
            else:
                earlier.append(ask)

    def _cut_down(self, device: str) -> None:
        """After a budget was lowered: who goes so that what is left fits."""
        there = self._holding(device)
        missing = -(self.ledger.free(device) + self._leaving(there))
        if missing <= 0:
            return
        able = [one for one in there if one.evictable(self._clock())]
        chosen = self._cheapest(able, need=missing)
        for one in able if chosen is None else chosen:
            log.warning("%s is unloaded: the memory budget of %s was lowered", one.id, device)
            one.evict("the memory budget was lowered")

    # --- deciding ---------------------------------------------------------------------------------------------------

    def decide(
        self, guest: Residence, footprint: Footprint, earlier: Sequence[Ask], *, insists: bool
    ) -> Decision:
        """What an ask leads to now. Changes nothing."""
        device = guest.device
        there = [one for one in self._holding(device) if one is not guest]
        ours = [ask.footprint.least for ask in earlier if ask.guest.device == device]
        now = self.ledger.free(device)
        soon = (
            now + self._leaving(there) - sum(ours)
        )  # once all who leave are gone and those before us have theirs
        within = min(now, soon)
        least, wanted = _kinds(footprint, footprint.kv_least), _kinds(footprint, footprint.kv_pages)
        comfort = _kinds(footprint, max(footprint.kv_least, footprint.kv_pages // COMFORT))
        fixed = sum(self._total(one) for one in there if one.pinned)
        if least.total > self.ledger.budget(device) - fixed:
            return Decision(error=self._too_much(guest, footprint, insists=insists))
        seats = self._crowd(guest, earlier)
        if comfort.total <= within and not seats:
            return Decision(kinds=self._as_much(footprint, within, wanted))
        if comfort.total <= soon and all(one.leaving for one in seats):
            return WAIT
        if not insists:
            if least.total <= within and not seats:
                return Decision(kinds=self._as_much(footprint, within, wanted))
            return Decision(error=self._too_much(guest, footprint, insists=False))
        ended = [one for one in seats if not one.leaving]
        for one in ended:
            if one.pinned:
                return Decision(error=_in_the_way(guest, one))
        if any(not self._may_end(one, guest) for one in ended):
            return WAIT
        for goal in (comfort, least):
            if goal.total <= within and not seats:
                return Decision(kinds=self._as_much(footprint, within, wanted))
            able = [one for one in there if self._may_end(one, guest) and one not in ended]
            free = soon + sum(self._total(one) for one in ended if one.device == device)
            idle = [one for one in able if not one.leases]
            for choice in (idle, able):
                chosen = self._cheapest(choice, need=goal.total, free=free)
                if chosen is not None:
                    return Decision(ended=(*ended, *chosen))
        return WAIT  # for those that load, or have requests that come before ours

    def _crowd(self, guest: Residence, earlier: Sequence[Ask]) -> list[Residence]:
        """Who must be gone before `guest` may come, however much memory there is: the others of its groups, and the cheapest
        ones above `max_loaded`. Those that leave already come first."""
        all_ = [one for one in self._holding(None) if one is not guest and one is not guest.replaces]
        crowd = [one for one in all_ if one.groups & guest.groups]
        if self._max_loaded is None:
            return crowd
        over = len(all_) + len(earlier) + 1 - self._max_loaded - len(crowd)
        rest = [one for one in all_ if one not in crowd]
        going = [one for one in rest if one.leaving]
        crowd += going[: max(0, over)]
        over -= len(going)
        if over > 0:
            able = [one for one in rest if not one.leaving and self._may_end(one, guest)]
            seats = [msgspec.structs.replace(self._resident(one), bytes=1, leased=False) for one in able]
            chosen = victims(_one_device(seats), need=over, free=0)
            ids = {one.id for one in chosen or []}
            last = sorted((one for one in rest if not one.leaving), key=lambda one: one.pinned)
            crowd += [one for one in able if one.key in ids] if chosen is not None else last[:over]
        return crowd

    def _may_end(self, one: Residence, guest: Residence) -> bool:
        """Idle ones of any priority; of those with requests, none of a higher priority than who asks."""
        if not one.evictable(self._clock()) or one is guest.replaces:
            return False
        return not one.leases or one.priority <= guest.priority

    def _cheapest(
        self, able: Sequence[Residence], *, need: int, free: int = 0
    ) -> tuple[Residence, ...] | None:
        residents = [msgspec.structs.replace(self._resident(one), leased=False) for one in able]
        chosen = victims(residents, need=need, free=free)
        if chosen is None:
            return None
        ids = {one.id for one in chosen if one.ends}
        return tuple(one for one in able if one.key in ids)

    def _resident(self, one: Residence) -> Resident:
        return one.resident(self._clock(), self._total(one))

    def _holding(self, device: str | None) -> list[Residence]:
        return [
            one
            for one in self._residences()
            if one.reservation is not None and device in (None, one.reservation.device)
        ]

    def _leaving(self, there: Sequence[Residence]) -> int:
        return sum(self._total(one) for one in there if one.leaving)

    def _total(self, one: Residence) -> int:
        return 0 if one.reservation is None else self.ledger.of(one.reservation).total

    def _as_much(self, footprint: Footprint, within: int, wanted: Kinds) -> Kinds:
        """As many pages as were wanted, else as fit."""
        if wanted.total <= within:
            return wanted
        pages = (within - footprint.weights - footprint.workspace) // footprint.kv_page
        return _kinds(footprint, pages)

    def _too_much(self, guest: Residence, footprint: Footprint, *, insists: bool) -> NoRoom:
        device = guest.device
        least = _kinds(footprint, footprint.kv_least)
        return NoRoom(
            f"{guest.id} needs {_mib(least.total)} of {device} (weights {_mib(least.weights)}, KV {_mib(least.kv)}, "
            f"workspace {_mib(least.workspace)}), of the budget of {_mib(self.ledger.budget(device))} "
            f"{_mib(max(0, self.ledger.free(device)))} are free"
            + table(self._holding(device), self.ledger)
            + "\nUnload or unpin one of these, or raise [runtime] memory_budget.",
            insisted=insists,
        )


def _kinds(footprint: Footprint, pages: int) -> Kinds:
    return Kinds(weights=footprint.weights, kv=footprint.kv_page * pages, workspace=footprint.workspace)


def _one_device(residents: list[Resident]) -> list[Resident]:
    return [msgspec.structs.replace(one, device="seats") for one in residents]


def _in_the_way(guest: Residence, one: Residence) -> ModelUnavailable:
    shared = ", ".join(sorted(guest.groups & one.groups))
    why = (
        f"both are of the group {shared}"
        if shared
        else "no more than [server] max_loaded models are loaded at once"
    )
    return ModelUnavailable(
        f"{guest.id} cannot be loaded beside {one.id}, which is pinned: {why}; unpin it first"
    )


def _mib(bytes_: int) -> str:
    return f"{bytes_ / (1 << 20):,.0f} MiB"
