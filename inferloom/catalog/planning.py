"""What a load would do, without doing it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from inferloom.catalog.devices import kinds_of
from inferloom.catalog.durations import load_secs
from inferloom.catalog.ledger import Kinds
from inferloom.catalog.lifecycle import State
from inferloom.catalog.prospects import outlook
from inferloom.catalog.unloaded import expected

if TYPE_CHECKING:
    from inferloom.catalog.arbiter import Arbiter
    from inferloom.catalog.entry import Entry


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """`fits` is None where the bytes are not known: the files are not ready on this machine. `seconds` is what the last load
    took, else a guess from the bytes; the requests of those that go are not waited for in it."""

    model: str
    loaded: bool
    fits: bool | None = None
    device: str
    needs: Kinds | None = None  # with the pages that it would get at least
    free: int = 0  # bytes of the device
    evicts: tuple[str, ...] = ()  # models, in no order
    waits: bool = False  # for others that load, leave or have requests
    seconds: float | None = None
    reason: str | None = None  # why it cannot be loaded


async def plan_of(entry: Entry, arbiter: Arbiter) -> Plan:
    """See `Plan`. Raises what looking for the files raises."""
    at = entry.residence
    free = arbiter.ledger.free(at.device)
    measured = at.report.seconds if at.report is not None else None
    if at.state is State.READY:
        held = None if at.reservation is None else arbiter.ledger.of(at.reservation)
        return Plan(
            model=entry.id, loaded=True, fits=True, device=at.device, needs=held, free=free, seconds=0.0
        )
    footprint = await expected(at)
    if footprint is None:
        return Plan(model=entry.id, loaded=False, device=at.device, free=free, seconds=measured)
    found = outlook(arbiter, at, footprint)
    return Plan(
        model=entry.id,
        loaded=False,
        fits=found.error is None,
        device=at.device,
        needs=found.kinds or kinds_of(footprint, footprint.kv_least),
        free=free,
        evicts=tuple(one.id for victim in found.ended for one in victim.entries),
        waits=found.waits,
        seconds=load_secs(at.report, footprint.least) if found.error is None else None,
        reason=None if found.error is None else found.error.message,
    )
