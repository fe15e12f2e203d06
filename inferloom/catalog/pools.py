"""The KV pages of models in memory: who has more than it needs, who wants more, and how both come about.

Untouched pages cost nothing but their place in the ledger. So a model has as many as there is room for, gives them back
when others come, and gets them again when others leave. What its worker says that it has is what the ledger holds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from inferloom.catalog.ledger import Ledger, Overdrawn
from inferloom.catalog.lifecycle import State
from inferloom.errors import InferloomError
from inferloom.types import Footprint

if TYPE_CHECKING:
    from inferloom.catalog.residence import Residence

log = logging.getLogger("inferloom.catalog")

# A model is squeezed to this part of the pages it wants, or to so many bytes, before another one has to go for it.
COMFORT = 4
COMFORT_BYTES = 512 << 20
# How long others wait for a worker that is in the middle of a step; what it gives back later is noted then.
ANSWER_SECS = 2.0


def comfort(footprint: Footprint) -> int:
    """The pages that a model is not squeezed below."""
    if not footprint.kv_page:
        return 0
    enough = -(-COMFORT_BYTES // footprint.kv_page)
    return max(footprint.kv_least, min(footprint.kv_pages // COMFORT, enough))


class Pools:
    """Of all models of a catalog. `changed` is called when a worker has answered."""

    def __init__(self, ledger: Ledger, changed: Callable[[], None]) -> None:
        self._ledger = ledger
        self._changed = changed
        self._moving: dict[Residence, asyncio.Task[None]] = {}
        self._goals: dict[Residence, int] = {}  # the pages that were asked for last
        self._most: dict[Residence, int] = {}  # of workers that had fewer than they were asked to have

    def moving(self, device: str) -> bool:
        """Whether a worker there is being asked just now."""
        return any(one.device == device for one in self._moving)

    def spare(self, one: Residence) -> int:
        """Bytes that it can be asked for without being squeezed too much. Of a model that loads: once it is loaded."""
        footprint = one.footprint
        if footprint is None or not footprint.kv_page or one.reservation is None or one.leaving:
            return 0
        return max(0, self._goal(one) - comfort(footprint)) * footprint.kv_page

    def coming(self, one: Residence) -> int:
        """Bytes that it was asked for and still uses: they come when requests end."""
        if one.footprint is None or one.leaving:
            return 0
        return (self._pages(one) - self._goal(one)) * one.footprint.kv_page

    def take(self, one: Residence, bytes_: int) -> None:
        """Have it give back at least so many bytes, whole pages; one that loads is asked when it is loaded."""
        footprint = one.footprint
        if footprint is None or one.state is not State.READY:
            return
        fewer = -(-bytes_ // footprint.kv_page)
        self._ask(one, max(comfort(footprint), self._goal(one) - fewer))

    def grow(self, there: Sequence[Residence], free: int) -> None:
        """Divide what is free among those that have less than they want, so that all get as much alike as they want."""
        hungry = [one for one in there if one.state is State.READY and one.footprint is not None]
        hungry = [one for one in hungry if self._missing(one) > 0 or self.coming(one) > 0]
        hungry.sort(key=lambda one: (self._missing(one), one.key))
        for index, one in enumerate(hungry):
            footprint, reservation = one.footprint, one.reservation
            assert footprint is not None and reservation is not None
            share = max(0, free) // (len(hungry) - index)
            more = min(self._missing(one), share) // footprint.kv_page
            if more or self.coming(one):
                held = self._ledger.of(reservation)
                kv = held.kv + more * footprint.kv_page
                self._ledger.change(reservation, msgspec.structs.replace(held, kv=kv))
                free -= more * footprint.kv_page
                self._ask(one, self._pages(one))

    def note(self, one: Residence) -> None:
        """Its worker has told how many pages there are."""
        card = None if one.runner is None else one.runner.card()
        if card is None or one.reservation is None or one.footprint is None or not card.kv_pages:
            return
        held = self._ledger.of(one.reservation)
        kv = card.kv_pages * one.footprint.kv_page
        if kv < held.kv and one in self._moving and card.kv_pages < self._goal(one):
            return  # of an earlier request to shrink: the answer to the last one follows
        if card.kv_pages > self._most.get(one, card.kv_pages):
            del self._most[one]
        if kv != held.kv:
            try:
                self._ledger.change(one.reservation, msgspec.structs.replace(held, kv=kv))
            except Overdrawn:  # pages that others have by now
                self._ask(one, held.kv // one.footprint.kv_page)
            self._changed()

    def forget(self, one: Residence) -> None:
        """It holds nothing any more."""
        self._goals.pop(one, None)
        self._most.pop(one, None)

    def _pages(self, one: Residence) -> int:
        if one.reservation is None or one.footprint is None or not one.footprint.kv_page:
            return 0
        return self._ledger.of(one.reservation).kv // one.footprint.kv_page

    def _goal(self, one: Residence) -> int:
        there = self._pages(one)
        return min(there, self._goals.get(one, there))

    def _missing(self, one: Residence) -> int:
        if one.footprint is None or one.leaving:
            return 0
        most = min(one.footprint.kv_pages, self._most.get(one, one.footprint.kv_pages))
        return max(0, most - self._pages(one)) * one.footprint.kv_page

    def _ask(self, one: Residence, pages: int) -> None:
        self._goals[one] = pages
        if one not in self._moving:
            task = asyncio.create_task(self._resize(one), name=f"resize {one.id}")
            self._moving[one] = task
            task.add_done_callback(lambda _: self._done(one))

    def _done(self, one: Residence) -> None:
        del self._moving[one]
        self._changed()

    async def _resize(self, one: Residence) -> None:
        runner, asked = one.runner, -1
        try:
            while runner is not None and one.runner is runner and asked != self._goals.get(one, asked):
                asked = self._goals[one]
                async with asyncio.timeout(ANSWER_SECS):
                    await runner.resize_kv(asked)
        except (InferloomError, TimeoutError) as error:
            log.debug("the pages of %s: %s", one.id, error)
        if one.runner is runner:
            self._moved(one)

    def _moved(self, one: Residence) -> None:
        card = None if one.runner is None else one.runner.card()
        if card is not None and one.reservation is not None and one.footprint is not None and card.kv_pages:
            if card.kv_pages < self._goals.get(one, 0):
                self._most[one] = card.kv_pages
            held = self._ledger.of(one.reservation)
            kv = min(held.kv, card.kv_pages * one.footprint.kv_page)
            self._ledger.change(one.reservation, msgspec.structs.replace(held, kv=kv))
