"""One residence takes the place of another: beside it where there is room, after it where there is not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress

from inferloom.catalog.arbiter import NoRoom
from inferloom.catalog.entry import Entry
from inferloom.catalog.lifecycle import State
from inferloom.catalog.residence import Residence
from inferloom.errors import InferloomError, ModelUnavailable


class Replacement:
    """Has `entries`, names of `old`, answered for by `successor`, which is loaded. Requests in progress have `drain_secs`.

    Where the successor cannot be loaded the names are what they were, `old` is loaded as it was, and the reason is raised.
    `old` is left to those of its names that stay; with none left it is unloaded. At no time are there more than these two
    workers. `moved` is told when requests go to a successor that was loaded beside.
    """

    def __init__(
        self,
        old: Residence,
        successor: Residence,
        entries: Sequence[Entry],
        *,
        moved: Callable[[Residence, Sequence[Entry]], None],
        drain_secs: float,
    ) -> None:
        self.over = asyncio.Event()
        self._old = old
        self._successor = successor
        self._entries = list(entries)
        self._stays = len(entries) < len(old.entries)
        self._moved = moved
        self._drain_secs = drain_secs
        self._scope: asyncio.Timeout | None = None  # of what an unload ends
        self._called_off = False
        self._went = False  # the old one, to make room

    async def run(self) -> None:
        concerned = {*self._old.entries, *self._successor.entries}
        for entry in concerned:
            entry.replacement = self
        try:
            await self._replace()
        finally:
            for entry in concerned:
                entry.replacement = None
            self.over.set()

    def call_off(self, *, force: bool, drain_secs: float) -> None:
        """Its model is unloaded: it is not to come back with the change. What is left of a change that was made ends like
        what is unloaded."""
        if self._scope is not None and not self._called_off:
            self._scope.reschedule(asyncio.get_running_loop().time())
        elif self._scope is None and not self._old.entries:
            self._old.depart(force=force, drain_secs=drain_secs)
        self._called_off = True

    async def _replace(self) -> None:
        try:
            beside = await self._bring_in()
        except InferloomError:
            if self._went and not self._called_off:
                with suppress(InferloomError):  # its status says so; what is told is why there was no change
                    await self._load_in_place(self._old)
            raise
        if beside:
            self._move(self._successor)
            self._moved(self._successor, self._entries)
            if not self._stays:
                await self._old.unload(force=False, drain_secs=self._drain_secs)

    async def _bring_in(self) -> bool:
        """Have the successor loaded; whether that is beside the old one, which has the names still."""
        try:
            async with asyncio.timeout(None) as self._scope:
                return await self._load()
        except TimeoutError:
            raise ModelUnavailable(
                f"the change of {self._old.id} was stopped by an unload: it is what it was, and unloaded",
                retry_after=1.0,
            ) from None
        finally:
            self._scope = None

    async def _load(self) -> bool:
        if self._successor.state is State.READY:
            return True
        try:
            try:
                await self._load_beside()
            except NoRoom:
                if not self._stays:
                    await self._load_after()
                    return False
                await self._successor.load()  # others go on with the old one: this is one model more
        except BaseException:
            await self._give_up()
            raise
        return True

    async def _load_beside(self) -> None:
        old, successor = self._old, self._successor
        old.successor, successor.replaces = successor, old
        try:
            await successor.load(insist=False)
        finally:
            old.successor = successor.replaces = None
            old.keep_again()
            old.arbiter.changed()  # it may go for others again

    async def _load_after(self) -> None:
        self._old.giving_way = made_room = asyncio.Event()
        try:
            await self._old.unload(force=False, drain_secs=self._drain_secs)
            self._went = True
            self._move(self._successor)
        finally:
            self._old.giving_way = None
            made_room.set()
        try:
            await self._load_in_place(self._successor)
        except BaseException:
            self._move(self._old)
            raise

    async def _load_in_place(self, residence: Residence) -> None:
        """Others go for it only if what the one before it had is not enough."""
        try:
            await residence.load(self._entries[0], insist=False)
        except NoRoom:
            await residence.load(self._entries[0])

    def _move(self, to: Residence) -> None:
        for entry in self._entries:
            entry.move(to)

    async def _give_up(self) -> None:
        """What is left of the successor ends before anything else is done, however often the wait is cancelled: whoever went
        on earlier could load a second worker beside it. Requests that wait may have begun to load it again."""
        leaving = None if self._successor.entries else self._successor.depart(force=True, drain_secs=0.0)
        cancelled: asyncio.CancelledError | None = None
        while leaving is not None and not leaving.done():
            try:
                await asyncio.wait({leaving})
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled
        if leaving is not None:
            leaving.result()


async def unload(entry: Entry, *, force: bool, drain_secs: float) -> None:
    """As `Residence.unload`; a change in progress ends and does not bring the model back. Returns when nothing is left of it
    either."""
    changes = {one.replacement for one in entry.residence.entries if one.replacement is not None}
    for change in changes:
        change.call_off(force=force, drain_secs=drain_secs)
    await entry.residence.unload(force=force, drain_secs=drain_secs)
    for change in changes:
        await change.over.wait()
