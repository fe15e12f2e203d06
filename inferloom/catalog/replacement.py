"""One residence takes the place of another: beside it where there is room, after it where there is not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from inferloom.catalog.arbiter import NoRoom
from inferloom.catalog.entry import Entry
from inferloom.catalog.lifecycle import State
from inferloom.catalog.residence import Residence
from inferloom.errors import InferloomError


async def replace(
    old: Residence,
    successor: Residence,
    entries: Sequence[Entry],
    *,
    moved: Callable[[Residence, Sequence[Entry]], None],
    drain_secs: float,
) -> None:
    """Have `entries`, names of `old`, answered for by `successor`, which is loaded. Requests in progress have `drain_secs`.

    Where the successor cannot be loaded the names are what they were, `old` is loaded as it was, and the reason is raised.
    `old` is left to those of its names that stay; with none left it is unloaded. At no time are there more than these two
    workers. `moved` is told when requests go to a successor that was loaded beside.
    """
    stays = len(entries) < len(old.entries)
    if successor.state is not State.READY:
        try:
            await _load_beside(old, successor)
        except NoRoom:
            if stays:
                await successor.load()  # others go on with the old one: this is one model more
            else:
                await _load_after(old, successor, entries, drain_secs=drain_secs)
                return
    for entry in entries:
        entry.move(successor)
    moved(successor, entries)
    if not stays:
        await old.unload(force=False, drain_secs=drain_secs)


async def _load_beside(old: Residence, successor: Residence) -> None:
    old.successor, successor.replaces = successor, old
    try:
        await successor.load(insist=False)
    except asyncio.CancelledError:
        await _gone(successor)
        raise
    finally:
        old.successor = successor.replaces = None
        old.arbiter.changed()  # it may go for others again


async def _gone(successor: Residence) -> None:
    """Nobody waits for the change any more, or it has failed: what is left of it ends before anything else is done, however
    often the wait is cancelled: whoever went on earlier could load a second worker beside it."""
    leaving = None if successor.entries else successor.depart(force=True, drain_secs=0.0)
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


async def _load_after(
    old: Residence, successor: Residence, entries: Sequence[Entry], *, drain_secs: float
) -> None:
    await old.unload(force=False, drain_secs=drain_secs)
    for entry in entries:
        entry.move(successor)
    try:
        await successor.load(entries[0])
    except BaseException as error:
        for entry in entries:
            entry.move(old)
        await _gone(successor)  # requests that wait may have begun to load it again
        if isinstance(error, InferloomError):
            await old.load(entries[0])
        raise
