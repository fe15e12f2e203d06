"""What asking for a model would lead to, how long that may take, and whether it is worth waiting for."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec
from msgspec import structs

from inferloom.catalog import admission
from inferloom.catalog.admission import Refusal, expected_waits
from inferloom.catalog.devices import holding
from inferloom.catalog.durations import load_secs, remaining_secs
from inferloom.catalog.eviction import victims
from inferloom.catalog.leases import mean_secs
from inferloom.catalog.ledger import Kinds
from inferloom.catalog.lifecycle import State
from inferloom.errors import InferloomError
from inferloom.types import Footprint

if TYPE_CHECKING:
    from inferloom.catalog.arbiter import Arbiter
    from inferloom.catalog.residence import Residence


class Outlook(msgspec.Struct, frozen=True):
    """What asking now would lead to: `kinds` at least, when `ended` are gone, or a refusal. `waits`: for others that load,
    leave or have requests."""

    kinds: Kinds | None = None
    ended: tuple[Residence, ...] = ()
    waits: bool = False
    error: InferloomError | None = None


def outlook(arbiter: Arbiter, guest: Residence, footprint: Footprint) -> Outlook:
    """What asking for room would lead to now. Changes nothing."""
    device = arbiter.device(guest.device)
    error = arbiter.hopeless(device, guest, footprint, insists=True)
    if error is not None:
        return Outlook(error=error)
    before = [ask for ask in arbiter.asks(device) if ask.guest is not guest]
    promised = sum(ask.need or device.need(ask.footprint) for ask in before)
    need = device.need(footprint)
    within = min(device.free, device.soon - promised)
    if need <= within and not arbiter.crowded(device, guest):
        return Outlook(kinds=device.share(footprint, need, within))
    kinds = device.share(footprint, need, need)
    seats = arbiter.seats()
    present = device.residents(everywhere=seats is not None)
    able = [one if one.priority > guest.priority else structs.replace(one, leased=False) for one in present]
    for residents in (present, able):
        found = victims(
            residents,
            need=need,
            free=device.soon - promised,
            forced=[one.key for one in device.excluded(guest) if not one.leaving],
            least=0 if seats is None else max(0, 1 - seats),
        )
        if found is not None:
            ending = {victim.id for victim in found if victim.ends}
            ended = tuple(one for one in holding(arbiter.residences()) if one.key in ending)
            return Outlook(kinds=kinds, ended=ended, waits=not found)
    return Outlook(kinds=kinds, waits=True)


def expected_secs(arbiter: Arbiter, guest: Residence) -> float | None:
    """Seconds until those who wait for it are served, an estimate; None where nothing can be said."""
    device = arbiter.device(guest.device)
    if guest.reservation is not None and guest.state in (State.LOADING, State.WARMING):
        return _remaining(arbiter, guest)
    waiting, residents = arbiter.snapshot(device, every=True)
    if guest.key not in {one.model for one in waiting}:
        if guest.state is not State.READY:
            return load_secs(guest.report, 0)
        waiting.append(device.waiting(guest, device.total(guest), since=arbiter.clock()))
    loading = [_remaining(arbiter, one) for one in device.there if one.state is State.LOADING]
    found = expected_waits(
        waiting,
        residents,
        free=device.soon,
        policy=arbiter.policy,
        busy_secs=max(loading, default=0.0),
        lease_secs=mean_secs([one.holders for one in arbiter.residences()]),
    )
    seconds = found[guest.key]
    return seconds if math.isfinite(seconds) else None


def refusal(arbiter: Arbiter, guest: Residence, queued: int, *, deadline_secs: float) -> Refusal | None:
    """Whether a request may wait for a model that `queued` others wait for."""
    load = 0.0 if guest.state is State.READY else _remaining(arbiter, guest)
    if queued < arbiter.max_waiting and deadline_secs >= load:
        return None
    return admission.refusal(
        queued,
        max_waiting=arbiter.max_waiting,
        expected_secs=expected_secs(arbiter, guest) or load,
        load_secs=load,
        deadline_secs=deadline_secs,
    )


def _remaining(arbiter: Arbiter, guest: Residence) -> float:
    """Seconds of its load, one in progress or one begun now; 0 where none was measured."""
    begun = guest.reservation is not None and guest.state is State.LOADING
    return remaining_secs(guest.report, arbiter.clock() - guest.granted_at if begun else 0.0)
