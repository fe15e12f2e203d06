"""One thing that can be in memory: its state, its one load at a time, its leases, its way out."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING

from inferloom.catalog.arbiter import Arbiter, NoRoom
from inferloom.catalog.flight import Flight
from inferloom.catalog.keeping import Keeping
from inferloom.catalog.leases import Leases
from inferloom.catalog.leaving import Departure
from inferloom.catalog.ledger import Reservation
from inferloom.catalog.lifecycle import NEXT, ModelBytes, State, Transition, measured
from inferloom.catalog.loading import bring_in, place_of
from inferloom.catalog.measuring import Measured
from inferloom.catalog.surroundings import Surroundings
from inferloom.catalog.tries import Tries
from inferloom.catalog.turn import Turn
from inferloom.config.schema import ModelConfig
from inferloom.errors import InferloomError, ModelUnavailable
from inferloom.runners.base import ModelRunner, WeightSource
from inferloom.types import Footprint, LoadProgress, LoadReport, ModelCard

if TYPE_CHECKING:
    from inferloom.catalog.entry import Entry

_numbers = itertools.count(1)


class Residence:
    """The weights of one configuration in one worker, whatever names it goes by. Used from one event loop."""

    def __init__(self, config: ModelConfig, around: Surroundings) -> None:
        self.config = config
        self.id = config.name
        self.key = f"{config.name}#{next(_numbers)}"
        self.device = config.driver.device[0]
        self.entries: list[Entry] = []  # the names it goes by
        self.state = State.DECLARED
        self.since = around.clock()
        self.reservation: Reservation | None = None  # the arbiter's business
        self.replaces: Residence | None = None  # that it is loaded beside, to take its place
        self.successor: Residence | None = None  # that is loaded beside it
        self.in_change = 0  # changes in progress that it has a part in
        self.giving_way: asyncio.Event | None = None  # there while it goes for its successor
        self.runner: ModelRunner | None = None  # of a loaded model; requests take a lease
        self.card: ModelCard | None = None
        self.report: LoadReport | None = None
        self.progress: LoadProgress | None = None
        self.tries = Tries(around.clock)
        self.footprint: Footprint | None = None  # of the last load that asked for room
        self.granted_at = 0.0  # when that got it
        self.holders = Leases(around.clock)
        self.turn = Turn(self.entries)
        self.loads = 0
        self.evictions = 0
        self.freed_bytes: int | None = None
        # what was a path once is never looked for on the hub, whatever becomes of the path
        self.place = place_of(config.weights)
        self.keeping = Keeping(self._expire, clock=around.clock)
        self._around = around
        self._measured = Measured()
        self._insisting = 0
        self._asked_by: Entry | None = None  # who the load in progress began for
        self._flight: Flight | None = None
        self._departure: Departure | None = None
        self._closed = False

    # --- what is known ----------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Requests that wait for it."""
        return self.turn.waiting

    @property
    def wanted_by(self) -> int:
        """Those who wait for it to be loaded, requests and others."""
        return max(1, self.waiting + self._insisting)

    @property
    def leases(self) -> int:
        """Requests that hold it."""
        return self.holders.count

    @property
    def open(self) -> bool:
        """Whether a request that comes now is served at once."""
        return self.state is State.READY and not self.turn.yielding

    @property
    def insists(self) -> bool:
        """Whether somebody wants it now, so that others may have to go for it."""
        return self._insisting > 0 or self.waiting > 0

    @property
    def arbiter(self) -> Arbiter:
        """Who decides about its room."""
        return self._around.arbiter

    @property
    def pinned(self) -> bool:
        return any(entry.pinned for entry in self.entries)

    @property
    def priority(self) -> int:
        return max((entry.config.priority for entry in self.entries), default=self.config.priority)

    @property
    def groups(self) -> frozenset[str]:
        configs = [entry.config for entry in self.entries] or [self.config]
        return frozenset(config.group for config in configs if config.group is not None)

    @property
    def leaving(self) -> asyncio.Task[None] | None:
        """The unload in progress."""
        return None if self._departure is None else self._departure.task

    @property
    def at_rest(self) -> bool:
        """Nothing is loaded, comes or goes, and no change is being made with it."""
        if self.in_change or self.reservation is not None:
            return False
        return self.runner is None and self._flight is None and self._departure is None

    @property
    def bytes(self) -> ModelBytes | None:
        if self.reservation is None:
            return None
        kinds = self._around.arbiter.ledger.of(self.reservation)
        measured = self._measured.bytes
        expected = kinds.weights + (self.footprint.idle if self.footprint is not None else kinds.workspace)
        return ModelBytes(
            weights=kinds.weights,
            kv=kinds.kv,
            workspace=kinds.workspace,
            estimate=kinds.total,
            expected=expected,
            measured=measured,
            error=measured / expected - 1 if measured is not None and expected else None,
        )

    @property
    def stays(self) -> bool:
        """Whether it may go for nobody."""
        return self.pinned or self.successor is not None

    def source_is_gone(self) -> bool:
        """Whether a model that is not loaded could not be: its folder or file is not there any more."""
        if self.state not in (State.DECLARED, State.UNLOADED) or self.place is None:
            return False
        return not self.place.exists()

    def source(self) -> WeightSource:
        return WeightSource(
            source=str(self.place or self.config.weights or ""),
            tokenizer=self.config.tok_model_id,
            quantization=self.config.quantization,
        )

    def new_runner(self, died: Callable[[InferloomError], None]) -> ModelRunner:
        """Of its configuration, not loaded; `died` is told when it was and can answer no more."""
        return self._around.make_runner(self.config, died)

    # --- leases -----------------------------------------------------------------------------------------------------

    def take(self) -> ModelRunner:
        """A lease on a model that is ready."""
        assert self.state is State.READY and self.runner is not None
        self.holders.take()
        self.keeping.stop()
        return self.runner

    def give_back(self, runner: ModelRunner, *, name: str, keep: float, served: bool) -> None:
        """`served`: nothing went wrong, so what crashed before is forgotten. `keep`: seconds it may stay idle now."""
        self.holders.give_back()
        ready = self.state is State.READY
        if served and runner is self.runner and ready:
            self.tries.served()
        if any(entry.id == name for entry in self.entries):  # else it goes by that name no longer
            self.keeping.used(name, keep=keep)
        if not self.leases:
            if ready:
                self.keeping.start()
            self._around.arbiter.demand_changed()

    async def idle(self) -> None:
        """Returns when no lease is held."""
        await self.holders.idle.wait()

    def left(self) -> None:
        """A request waits for it no more."""
        self._around.arbiter.demand_changed()
        self.keep_again()

    def _expire(self) -> None:
        if self.state is not State.READY or self.leases or self.waiting or self.leaving:
            return
        if not self.pinned and self.successor is None:
            self.depart(
                force=False, drain_secs=None, cause="expired", reason="it was idle for its keep_alive"
            )

    def forget(self, entry: Entry) -> None:
        """It goes by that name no longer, and by others it does."""
        self.entries.remove(entry)
        self.keeping.drop(entry.id)
        self.keep_again()

    def keep_again(self) -> None:
        """Something else decides now how long it stays: a pin was taken off, another time was set."""
        if self.state is State.READY and not self.leases:
            self.keeping.start()

    # --- loading ----------------------------------------------------------------------------------------------------

    async def load(self, entry: Entry | None = None, *, insist: bool = True) -> None:
        """Load now, whatever failed before; nothing to do where it is loaded. Without `insist` nobody has to go for it.
        An `entry` that is answered for by another residence in the meantime has that one loaded."""
        self._insisting += insist
        try:
            while self.state is not State.READY and (entry is None or entry.residence is self):
                if entry is not None:
                    entry.refuse_removed()
                if await self.become_ready(entry, paced=False):
                    return  # it was loaded, even if others have needed its room since then
        finally:
            self._insisting -= insist
            self._around.arbiter.demand_changed()
        if entry is not None and entry.residence is not self:
            await entry.residence.load(entry, insist=insist)

    async def become_ready(self, entry: Entry | None, *, paced: bool) -> bool:
        """Take part in what leads to a loaded model; whether a load has ended well, else there is more to wait for.
        `paced`: not soon after a failure."""
        if self._closed:
            raise ModelUnavailable("the server is shutting down", retry_after=5.0)
        if self.state is State.READY:  # it yields
            await self.turn.comes()
            return False
        if self.giving_way is not None:
            await self.giving_way.wait()
            return False
        if self._departure is not None:
            await asyncio.shield(self._departure.task)
            return False
        if self._flight is None:
            if paced and self.state is State.FAILED:
                self.tries.refuse_early(self.id)
            self._take_off(entry)
        flight = self._flight
        assert flight is not None
        self._around.arbiter.demand_changed()  # who waits for room may insist from now on
        landed = await flight.joined()
        if not landed and flight.stopped and not paced:
            # a request goes on waiting and loads it again
            raise ModelUnavailable(
                f"the load of {self.id} was stopped by an unload; ask again to load it", retry_after=1.0
            )
        return landed

    def _take_off(self, entry: Entry | None, *, kept: bool = False) -> None:
        self._asked_by, self.progress = entry, LoadProgress("start")
        self._flight = Flight(self._load(), name=f"load {self.id}", landed=self._land, kept=kept)

    def _land(self, flight: Flight) -> None:
        if flight is self._flight:  # else what it had loaded has died, and is loaded again
            self._flight = self.progress = None
        self._around.arbiter.changed()  # one load less that others leave room for
        self._around.rested(self)

    async def _load(self) -> None:
        """The one load: at most two tries, the second at once where the cause may have passed."""
        try:
            while True:
                self._go(State.LOADING)
                self.note_progress(LoadProgress("start"))
                try:
                    await self._try_load()
                except NoRoom as error:
                    if error.insisted:
                        self._fail(error)
                    else:
                        self._go(State.UNLOADED)
                    raise
                except InferloomError as error:
                    self._fail(error)
                    if not self.tries.worth_another(error):
                        raise
                else:
                    return
        except asyncio.CancelledError:
            self._go(State.UNLOADED)
            raise

    async def _try_load(self) -> None:
        around = self._around
        self.place = self.place or place_of(self.config.weights)
        runner, self.report = await bring_in(
            self,
            lambda: self.new_runner(self._died),
            self.source(),
            arbiter=around.arbiter,
            progress=self.note_progress,
            clock=around.clock,
        )
        self._go(State.WARMING)
        self.runner, self.card = runner, runner.card()
        self.tries.error = None
        self.loads += 1
        self.holders.begin()
        self._go(State.READY)
        self.turn.begin()
        if self._asked_by is not None:
            self.keeping.loaded(self._asked_by.id, keep=self._asked_by.keep_alive)
        self.keeping.start()
        self._measured.begin(runner)
        around.arbiter.changed()

    def inherit(self, old: Residence) -> None:
        """Take over what is known of the model from the residence whose place this one takes."""
        if self.config.weights == old.config.weights:
            self.place = old.place or self.place
        self.loads, self.evictions = self.loads + old.loads, self.evictions + old.evictions
        self.card = self.card or old.card

    def note_progress(self, progress: LoadProgress) -> None:
        self.progress = progress
        self._around.progressed(self, progress)

    def _fail(self, error: InferloomError) -> None:
        self.tries.fail(error)
        self._go(State.FAILED)

    def _died(self, error: InferloomError) -> None:
        """The worker of a loaded model is gone; its requests have failed by now."""
        if self.state is not State.READY:
            return  # an unload is on its way and will find it gone
        self.runner = None
        self.keeping.stop()
        self._fail(error)
        self._around.arbiter.release(self)
        if self.tries.count == 1 and not self._closed and self.entries:
            self._take_off(None, kept=True)  # the one retry at once: nobody has to ask for it

    # --- unloading --------------------------------------------------------------------------------------------------

    async def unload(self, *, force: bool, drain_secs: float) -> None:
        """Returns when the process is gone. Without `force`, requests in progress have `drain_secs` to end.

        A load in progress is stopped; a failure is forgotten. Several callers share one unload.
        """
        leaving = self.depart(force=force, drain_secs=drain_secs)
        if leaving is not None:
            await asyncio.shield(leaving)

    def evict(self, reason: str) -> None:
        """Go for the sake of others, once the requests it has are answered."""
        self.evictions += 1
        self.depart(force=False, drain_secs=None, cause="evicted", reason=reason)

    async def close(self) -> None:
        """Unload at once and for good: whoever still waits is told, and nothing is loaded any more."""
        self._closed = True
        await self.unload(force=True, drain_secs=0.0)

    def depart(
        self, *, force: bool, drain_secs: float | None, cause: str | None = None, reason: str | None = None
    ) -> asyncio.Task[None] | None:
        """Begin to unload and return what does it; None where nothing is loaded. Without `drain_secs` requests have all the
        time that they have by themselves; a later call can shorten it."""
        if self.successor is not None:
            self.successor.depart(force=True, drain_secs=0.0)
        if self._departure is None:
            if self._flight is None and self.state is not State.READY:
                self._forget()
                return None
            self.keeping.forget()
            if self.state is State.READY:
                self._go(State.DRAINING, cause=cause, reason=reason)
            self._departure = Departure(lambda own: self._leave(own, cause), name=f"unload {self.id}")
        self._departure.hurry(force=force, drain_secs=drain_secs)
        return self._departure.task

    async def _leave(self, departure: Departure, cause: str | None) -> None:
        try:
            if self._flight is not None:
                await self._flight.stop()
                if self.state is State.READY:  # it had just landed
                    self._go(State.DRAINING, cause=cause)
            if self.state is State.DRAINING:
                await departure.drained(self.holders.idle)
                self._go(State.UNLOADING, cause=cause)
                self._measured.stop()
                runner, self.runner = self.runner, None
                if runner is not None and cause is None:
                    # what was never counted the kernel counts while the worker writes what it keeps
                    await asyncio.gather(self._measured.bring_up_to_date(runner), runner.spill())
                elif runner is not None:
                    await runner.spill()
                self.freed_bytes = self._measured.bytes
                if runner is not None:
                    await runner.close()
                self._around.arbiter.release(self)
                self._go(State.UNLOADED, cause=cause)
            self._forget()
        finally:
            self._departure = None
            self._around.rested(self)

    def _forget(self) -> None:
        self.tries.forget()
        if self.state in (State.DECLARED, State.FAILED):
            self._go(State.UNLOADED)

    def _go(self, new: State, *, cause: str | None = None, reason: str | None = None) -> None:
        old = self.state
        if new is old:
            return
        assert new in NEXT[old], f"{self.id}: {old} → {new}"
        self.state = new
        if old is State.READY:
            self.turn.end()
        self.since = self._around.clock()
        if new is State.FAILED and self.tries.error is not None:
            reason = self.tries.error.message
        known = measured(self.report if new is State.READY else None)
        change = Transition(id=self.id, old=old, new=new, reason=reason, cause=cause, **known)
        self._around.changed(self, change)
