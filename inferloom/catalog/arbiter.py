"""Where models ask for room: who may load now, who has to yield or go for it, and who must be refused.

Loads ask once their footprint is known and hold nothing while they wait, so that no two can wait for each other. Whose
turn it is `admission.next_load` says, looked at again at every change (a request that comes or ends, a worker that is
gone, a new budget) and whenever time alone may change it. Room that is being made for one is given to no other.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

import msgspec
from msgspec import structs

from inferloom.catalog import admission
from inferloom.catalog.admission import Policy, Waiting, look_again_secs, next_load
from inferloom.catalog.devices import Device, holding, kinds_of
from inferloom.catalog.eviction import Resident, Victim, victims
from inferloom.catalog.holdings import table
from inferloom.catalog.ledger import Kinds, Ledger
from inferloom.catalog.lifecycle import State
from inferloom.catalog.pools import Pools
from inferloom.catalog.prospects import expected_secs
from inferloom.config.schema import ServerConfig
from inferloom.errors import InferloomError, ModelUnavailable, OutOfMemory
from inferloom.types import Footprint, LoadProgress

if TYPE_CHECKING:
    from inferloom.catalog.residence import Residence

log = logging.getLogger("inferloom.catalog")


class NoRoom(OutOfMemory):
    """The ledger's refusal. `insisted`: somebody waits for the model, so that others would have been unloaded for it."""

    def __init__(self, detail: str, *, insisted: bool) -> None:
        super().__init__(detail)
        self.insisted = insisted


class Ask(msgspec.Struct, eq=False):
    """A load that waits for room."""

    guest: Residence
    footprint: Footprint
    granted: asyncio.Future[None]
    since: float
    need: int = 0  # bytes it is loaded with at least, once its turn has come
    told: str = ""  # how long it may take, as its status says


class Arbiter:
    """The one place where residences ask for room. Used from one event loop."""

    def __init__(
        self,
        ledger: Ledger,
        residences: Callable[[], Collection[Residence]],
        *,
        server: ServerConfig,
        clock: Callable[[], float],
    ) -> None:
        self.ledger = ledger
        self.pools = Pools(ledger, self.changed)
        self.residences = residences
        self.clock = clock
        self._asks: list[Ask] = []  # in the order of asking
        self._turns: list[Ask] = []  # room is being made for these, in the order of their turns
        self._looking = False
        self._timer: asyncio.TimerHandle | None = None
        self._take_rules(server)

    def _take_rules(self, server: ServerConfig) -> None:
        self.policy: Policy = server.swap_policy
        self._max_loaded = server.max_loaded
        self.max_waiting = server.max_waiting

    def set_rules(self, server: ServerConfig) -> None:
        """What `[server]` says of swapping from now on; what is loaded stays until room is asked for."""
        self._take_rules(server)
        self.changed()

    async def room(self, guest: Residence, footprint: Footprint) -> Kinds:
        """Returns when `guest.reservation` holds what is returned. Raises `NoRoom`; when cancelled nothing is held."""
        guest.footprint = footprint
        granted = asyncio.get_running_loop().create_future()
        ask = Ask(guest, footprint, granted, self.clock())
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
        self.pools.forget(guest)
        if reservation is not None:
            self.ledger.release(reservation)
            self.changed()

    def set_budget(self, device: str, bytes_: int) -> None:
        """What is too much from now on is given back, or unloaded after its requests have ended."""
        self.ledger.set_budget(device, bytes_)
        self._settle()

    def demand_changed(self) -> None:
        """A request has come, is served, has ended or waits no more. That matters to those who wait for room, and to nobody
        else: without them a look would find what the last one left."""
        if self._asks:
            self.changed()

    def changed(self) -> None:
        """Memory, its owners or the rules are not what they were: look again at all who wait and all who could have more,
        once the caller has finished what it does."""
        if not self._looking:
            self._looking = True
            asyncio.get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        self._looking = False
        self._settle()

    def stop(self) -> None:
        """Look no more by the clock."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _settle(self) -> None:
        self.stop()
        self._turns = [ask for ask in self._turns if not ask.granted.done() and ask in self._asks]
        yielding: set[Residence] = set()
        again = math.inf
        names = {*self.ledger.devices(), *(ask.guest.device for ask in self._asks)}
        for name in sorted(names):
            device = self.device(name)
            if not self.pools.moving(name):
                self._cut_down(device)
            if self.pools.moving(name):  # the answer brings us back
                yielding |= _yielding(device)
                continue
            yielding |= self._serve(device)
            self._tell(device)
            waiting, residents = self.snapshot(device)
            again = min(again, look_again_secs(waiting, residents, policy=self.policy))
        for one in self.residences():
            one.turn.hold(one in yielding)
        if math.isfinite(again):
            self._timer = asyncio.get_running_loop().call_later(again + 1e-3, self.changed)

    def device(self, name: str) -> Device:
        """Its memory as it is now."""
        return Device(name, self.residences, ledger=self.ledger, pools=self.pools, clock=self.clock)

    def asks(self, device: Device) -> list[Ask]:
        """The loads that wait for room there, in the order of asking."""
        return [ask for ask in self._asks if ask.guest.device == device.name and not ask.granted.done()]

    # --- who is served ----------------------------------------------------------------------------------------------

    def _serve(self, device: Device) -> set[Residence]:
        """Grant what can be granted and begin to make room; who is to yield."""
        for ask in self.asks(device):
            error = self.hopeless(device, ask.guest, ask.footprint, insists=ask.guest.insists)
            if error is not None:
                ask.granted.set_exception(error)
        promised = 0
        for ask in [ask for ask in self._turns if ask in self.asks(device)]:
            feasible = ask.guest.insists and device.soon - promised >= ask.need
            if feasible and not self.crowded(device, ask.guest, staying=True):
                promised += self._grant(device, ask, promised)
            else:  # it was not as it seemed
                self._turns.remove(ask)
        yielding: set[Residence] = set()
        while waiting := [ask for ask in self.asks(device) if self._may_choose(ask)]:
            decision = self._next(device, waiting, promised)
            if decision is None:
                break
            ask = next(ask for ask in waiting if ask.guest.key == decision.model)
            if not decision.ready:
                yielding = {one for one in device.there if one.key in decision.yielding}
                promised += ask.need
                break
            self._make_room(decision.victims, ask.guest)
            self._turns.append(ask)
            if self.pools.moving(device.name):
                return _yielding(device)
            promised += self._grant(device, ask, promised)
        if not self.pools.moving(device.name):
            self._modest(device, promised)
        if not self.asks(device) and not device.coming and not self.pools.moving(device.name):
            self.pools.grow(device.there, device.free)
        return yielding

    def _may_choose(self, ask: Ask) -> bool:
        """Room is not being made for it, nor for one that excludes it."""
        if not ask.guest.insists or ask in self._turns:
            return False
        return not any(ask.guest.groups & other.guest.groups for other in self._turns)

    def _next(self, device: Device, asks: Sequence[Ask], promised: int) -> admission.Decision | None:
        """Whose turn it is, and who makes room."""
        seats = self.seats()
        residents = device.residents(everywhere=seats is not None and seats < 1)
        for ask in asks:
            ask.need = device.need(ask.footprint)
        waiting = [device.waiting(ask.guest, ask.need, since=ask.since) for ask in asks]
        free = device.soon - promised
        return next_load(waiting, residents, free=free, policy=self.policy, seats=seats)

    def seats(self) -> int | None:
        """How many more may be loaded, those taken off whose turn it is."""
        if self._max_loaded is None:
            return None
        there = [one for one in holding(self.residences()) if not one.leaving]
        return self._max_loaded - len(there) - len(self._turns)

    def crowded(self, device: Device, guest: Residence, *, staying: bool = False) -> bool:
        """Whether others must be gone before it may begin, however much memory there is; with `staying` others than those
        that leave."""
        there = [one for one in holding(self.residences()) if one not in (guest, guest.replaces)]
        excluded = device.excluded(guest)
        if staying:
            there, excluded = ([one for one in all_ if not one.leaving] for all_ in (there, excluded))
        return bool(excluded) or (self._max_loaded is not None and len(there) >= self._max_loaded)

    def _grant(self, device: Device, ask: Ask, promised: int) -> int:
        """Give it its room if that is there, else keep it: the bytes that are kept."""
        guest = ask.guest
        within = min(device.free, device.soon - promised)
        if ask.need > within or self.crowded(device, guest):
            return ask.need
        if ask in self._turns:
            self._turns.remove(ask)
        kinds = device.share(ask.footprint, ask.need, within)
        guest.reservation = self.ledger.reserve(guest.id, guest.device, kinds)
        guest.granted_at = self.clock()
        ask.granted.set_result(None)
        return 0

    def _modest(self, device: Device, promised: int) -> None:
        """Those whom nobody waits for take what is free, or what others can spare; nobody goes for them."""
        asks = [ask for ask in self.asks(device) if not ask.guest.insists]
        for ask in sorted(asks, key=lambda ask: -ask.guest.priority):
            guest, least = ask.guest, ask.footprint.least
            seats = self.seats()
            taken = seats is not None and seats + (guest.replaces is not None) < 1
            kept = any(guest.groups & other.guest.groups for other in self._turns)
            if taken or kept or self.crowded(device, guest, staying=True):
                ask.granted.set_exception(self._too_much(guest, ask.footprint, insists=False))
                continue
            fixed = [structs.replace(one, leased=True) for one in device.residents()]
            for need in (device.need(ask.footprint), least):
                found = victims(fixed, need=need, free=device.soon - promised)
                if found is not None:
                    ask.need = need
                    self._make_room(found, guest)
                    promised += self._grant(device, ask, promised) if not found else need
                    break
            else:
                ask.granted.set_exception(self._too_much(guest, ask.footprint, insists=False))
            if self.pools.moving(device.name):
                return

    def _make_room(self, found: Sequence[Victim], guest: Residence) -> None:
        known = {one.key: one for one in holding(self.residences())}
        for victim in found:
            if victim.ends:
                known[victim.id].evict(f"to make room for {guest.id}")
            else:
                self.pools.take(known[victim.id], victim.bytes)

    def _cut_down(self, device: Device) -> None:
        """After a budget was lowered: who goes so that what is left fits."""
        missing = -device.soon - sum(self.pools.coming(one) for one in device.there)
        if missing <= 0:
            return
        known = {one.key: one for one in device.there}
        residents = [
            structs.replace(one, leased=known[one.id].state is not State.READY) for one in device.residents()
        ]
        chosen = victims(residents, need=missing, free=0)
        if chosen is None:
            ending = [one for one in residents if not one.leased and not one.pinned]
            chosen = [Victim(resident=one, bytes=one.bytes, ends=True) for one in ending]
            chosen += [
                Victim(resident=one, bytes=one.shrinkable, ends=False)
                for one in residents
                if one.shrinkable and one not in ending
            ]
        for victim in chosen:
            one = known[victim.id]
            if victim.ends:
                log.warning("%s is unloaded: the memory budget of %s was lowered", one.id, device.name)
                one.evict("the memory budget was lowered")
            else:
                self.pools.take(one, victim.bytes)

    # --- what is told -------------------------------------------------------------------------------------------------

    def _tell(self, device: Device) -> None:
        """Have the status of who waits say for how long."""
        for ask in self.asks(device):
            seconds = expected_secs(self, ask.guest)
            text = "" if seconds is None else f"about {max(1, math.ceil(seconds))} s"
            if text != ask.told:
                ask.told = text
                ask.guest.note_progress(LoadProgress("room", detail=text))

    def snapshot(self, device: Device, *, every: bool = False) -> tuple[list[Waiting], list[Resident]]:
        """`every`: those whose turn it is as well."""
        asks = [ask for ask in self.asks(device) if every or (ask.guest.insists and ask not in self._turns)]
        waiting = [
            device.waiting(ask.guest, ask.need or device.need(ask.footprint), since=ask.since) for ask in asks
        ]
        return waiting, device.residents()

    # --- who is refused ---------------------------------------------------------------------------------------------

    def hopeless(
        self, device: Device, guest: Residence, footprint: Footprint, *, insists: bool
    ) -> InferloomError | None:
        """Why it cannot be loaded whoever goes. Who does not insist takes what is free, and is told elsewhere."""
        if footprint.least > device.most:
            return self._too_much(guest, footprint, insists=insists)
        if not insists:
            return None
        pinned = [one for one in holding(self.residences()) if one.pinned and not one.leaving]
        for one in device.excluded(guest):
            if one in pinned:
                return _in_the_way(guest, one)
        pinned = [one for one in pinned if one not in (guest, guest.replaces)]
        if self._max_loaded is not None and len(pinned) >= self._max_loaded:
            return _in_the_way(guest, pinned[0])
        return None

    def _too_much(self, guest: Residence, footprint: Footprint, *, insists: bool) -> NoRoom:
        device = guest.device
        least = kinds_of(footprint, footprint.kv_least)
        return NoRoom(
            f"{guest.id} needs {_mib(least.total)} of {device} (weights {_mib(least.weights)}, KV {_mib(least.kv)}, "
            f"workspace {_mib(least.workspace)}), and of the budget of {_mib(self.ledger.budget(device))} "
            f"{_mib(max(0, self.ledger.free(device)))} are free"
            + table(self.device(device).there, self.ledger),
            insisted=insists,
        )


def _yielding(device: Device) -> set[Residence]:
    return {one for one in device.there if one.turn.yielding}


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
