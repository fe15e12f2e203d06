"""All declared models, and the one way to use them: `async with catalog.lease(name) as runner`."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import msgspec

from inferloom.catalog.arbiter import Arbiter, NoRoom
from inferloom.catalog.entry import Entry, residence_key, shared_part
from inferloom.catalog.lease import Lease
from inferloom.catalog.ledger import Ledger
from inferloom.catalog.lifecycle import ModelStatus, State, Transition, log_change, measured
from inferloom.catalog.names import Names
from inferloom.catalog.planning import Plan, plan_of
from inferloom.catalog.replacement import Replacement, unload
from inferloom.catalog.residence import Residence
from inferloom.catalog.surroundings import Surroundings
from inferloom.catalog.unloaded import files_changed, prepare
from inferloom.config.quantities import budgets
from inferloom.config.schema import Config, ModelConfig, ServerConfig
from inferloom.errors import Conflict, InferloomError, InvalidRequest, ModelUnavailable
from inferloom.runners.base import ModelRunner
from inferloom.runners.budget import ram_bytes
from inferloom.runners.factory import make_runner
from inferloom.sources.defaults import with_defaults
from inferloom.types import LoadProgress
from inferloom.worker.pool import WorkerPool

__all__ = ["Catalog", "Entry", "Lease", "ModelStatus"]

log = logging.getLogger("inferloom.catalog")

Factory = Callable[[ModelConfig, Config, WorkerPool, Callable[[InferloomError], None]], ModelRunner]


class Catalog:
    """The models of a configuration. Used from one event loop, the pool's."""

    def __init__(
        self,
        config: Config,
        pool: WorkerPool,
        *,
        observer: Callable[[Transition], None] | None = None,
        factory: Factory | None = None,
    ) -> None:
        """`observer` is told of every change of state, after it was logged. Raises `ConfigError` for names that
        cannot be told apart."""
        config = with_defaults(config)
        self._config = config
        self._names = Names(config.model, default=config.server.default_model)
        self._observers: list[Callable[[Transition], None]] = [observer] if observer is not None else []
        self._progress_observers: list[Callable[[str, LoadProgress], None]] = []
        self._closing = False
        self._loads: set[asyncio.Task[None]] = set()
        self._created = int(time.time())
        self._change_of: dict[Residence, asyncio.Lock] = {}
        self._residences: dict[Residence, None] = {}  # in the order in which they were made
        make = factory or (lambda model, now, pool, died: make_runner(model, now, pool, on_death=died))
        self.ledger = Ledger(budgets(config.runtime.memory_budget, ram=ram_bytes()))
        arbiter = Arbiter(
            self.ledger,
            lambda: self._residences,
            server=config.server,
            clock=time.monotonic,
        )
        self._around = Surroundings(
            arbiter=arbiter,
            make_runner=lambda model, on_death: make(model, self.config, pool, on_death),
            changed=self._note,
            progressed=self._note_progress,
            rested=lambda residence: None if residence.entries else self._tidy(),
            clock=time.monotonic,
        )
        self._entries: dict[str, Entry] = {}
        for model in config.model:
            self._declare(model)

    def _declare(self, model: ModelConfig) -> Entry:
        entry = Entry(
            model,
            self._residence_for(model),
            created=self._created,
            keep_alive=self._config.server.keep_alive,
        )
        self._entries[model.name] = entry
        return entry

    def _residence_for(self, model: ModelConfig) -> Residence:
        """The one that answers for such a model already, else a new one."""
        key = residence_key(model)
        for entry in self._entries.values():
            if residence_key(entry.config) == key:
                return entry.residence
        return self._new_residence(model)

    def _new_residence(self, model: ModelConfig) -> Residence:
        residence = Residence(shared_part(model), self._around)
        self._residences[residence] = None
        return residence

    # --- what there is ----------------------------------------------------------------------------------------------

    @property
    def config(self) -> Config:
        """The configuration as it is now: with the models and the default model that it was changed to meanwhile."""
        server = msgspec.structs.replace(self._config.server, default_model=self._names.default)
        models = [entry.config for entry in self._entries.values()]
        return msgspec.structs.replace(self._config, server=server, model=models)

    def entries(self) -> list[Entry]:
        """All models, in the configuration's order."""
        return list(self._entries.values())

    def residences(self) -> list[Residence]:
        """What is in memory or may come to be, in the order in which it was made; a successor stands beside the old."""
        return list(self._residences)

    @property
    def default(self) -> Entry:
        return self.resolve(None)

    def resolve(self, name: str | None) -> Entry:
        """By id, alias or canonical name; None and `default` mean the default model. Raises `ModelNotFound`."""
        return self._entries[self._names.resolve(name)]

    def status(self, name: str | None) -> ModelStatus:
        return self.resolve(name).status()

    def observe(self, observer: Callable[[Transition], None]) -> None:
        """Have `observer` told of every change of state from now on."""
        self._observers.append(observer)

    def observe_progress(self, observer: Callable[[str, LoadProgress], None]) -> None:
        """Have `observer` told of every report of a load in progress: the model's id, and how far it is."""
        self._progress_observers.append(observer)

    async def plan(self, name: str | None) -> Plan:
        """What loading a model now would do. Nothing is changed."""
        return await plan_of(self.resolve(name), self._around.arbiter)

    # --- using models -----------------------------------------------------------------------------------------------

    def lease(
        self, name: str | None, *, deadline: float | None = None, keep_alive: float | None = None
    ) -> AbstractAsyncContextManager[ModelRunner]:
        """A model's runner for the length of an `async with`, loaded first where it is not. `deadline`
        (time.monotonic()) bounds the wait; without one the configuration's load timeout does. `keep_alive`: seconds that
        the model may then stay idle (`config.quantities.keep_alive_secs`); None: as configured."""
        if self._closing:
            raise ModelUnavailable("the server is shutting down", retry_after=5.0)
        entry = self.resolve(name)
        if deadline is None and self._config.server.load_timeout_secs > 0:
            deadline = time.monotonic() + self._config.server.load_timeout_secs
        return Lease(entry, deadline=deadline, keep_alive=keep_alive)

    async def start(self) -> None:
        """Begin loading every model that is not lazy, those of higher priority first; returns at once, failures show in
        the status. Nothing that is loaded goes for it: what does not fit waits for its first request."""
        eager = [entry for entry in self.entries() if not entry.config.lazy]
        for entry in sorted(eager, key=lambda entry: -entry.config.priority):
            self._begin(entry)

    def _begin(self, entry: Entry) -> None:
        task = asyncio.create_task(self._preload(entry), name=f"preload {entry.id}")
        self._loads.add(task)
        task.add_done_callback(self._loads.discard)

    async def load(self, name: str, *, keep_alive: float | None = None) -> ModelStatus:
        """Load now, without regard to an earlier failure; a loaded model is left as it is. `keep_alive`: seconds that it
        may stay idle from now on; with 0 it stays for one request."""
        entry = self.resolve(name)
        if self._closing:
            raise ModelUnavailable("the server is shutting down", retry_after=5.0)
        await entry.residence.load(entry)
        if keep_alive is not None:
            entry.keep(keep_alive)
        return entry.status()

    async def reload(self, name: str, *, keep_alive: float | None = None) -> ModelStatus:
        """Load what is unloaded or failed. A loaded model is replaced if its files have changed, else left as it is."""
        entry = self.resolve(name)
        if entry.state is not State.READY:
            return await self.load(name, keep_alive=keep_alive)
        async with self._changing(entry) as old:
            # it may be unloaded while its files are looked at
            if old.state is State.READY and await files_changed(old) and old.state is State.READY:
                successor = self._new_residence(entry.config)
                successor.inherit(old)
                await self._replace(old, successor, old.entries)
        if keep_alive is not None:
            entry.keep(keep_alive)
        return entry.status()

    async def unload(self, name: str, *, force: bool = False, drain_secs: float | None = None) -> ModelStatus:
        """Let go of the model's memory; returns when the process is gone. Requests in progress have `drain_secs` (None: as
        configured), with `force` none."""
        entry = self.resolve(name)
        if drain_secs is None:
            drain_secs = self._config.server.drain_timeout_secs
        await unload(entry, force=force, drain_secs=drain_secs)
        return entry.status()

    # --- changing models --------------------------------------------------------------------------------------------

    def pin(self, name: str | None, pinned: bool) -> ModelStatus:
        """Have a model stay in memory once it is there, or no longer. It is not loaded for that."""
        entry = self.resolve(name)
        entry.pinned = pinned
        if not pinned:
            entry.residence.keep_again()
        self._around.arbiter.changed()
        return entry.status()

    def set_default(self, name: str) -> Entry:
        """The model of requests that name none, loaded or not."""
        entry = self.resolve(name)
        self._names.set_default(entry.id)
        return entry

    def add(self, model: ModelConfig, *, load: bool = False) -> Entry:
        """Declare one more model, the last of the listing. Shares the worker of one that is the same under another name.
        `load`: begin to load it as `start` does. Raises `ConfigError` for a name that is taken."""
        (model,) = with_defaults(msgspec.structs.replace(self._config, model=[model])).model
        models = [*(entry.config for entry in self.entries()), model]
        self._names = Names(models, default=self._names.default)
        entry = self._declare(model)
        entry.created = int(time.time())
        self._note_shared(entry)
        if load:
            self._begin(entry)
        return entry

    async def remove(
        self, name: str | None, *, force: bool = False, drain_secs: float | None = None
    ) -> Entry:
        """Forget a model: nobody gets it any more, and when those who have it are done its memory is freed. Returns then.

        Raises `Conflict` for the default model and for one that drafts for others; then nothing has changed.
        """
        entry = self.resolve(name)
        async with self._changing(entry):
            if entry is self.default:
                raise Conflict(
                    f"{entry.id!r} is the default model: choose another with PUT /v1/models/default first"
                )
            for other in self.entries():
                if other.config.draft in (entry.id, *entry.aliases):
                    raise Conflict(f"{entry.id!r} drafts for {other.id!r}: change or remove that first")
            if drain_secs is None:
                drain_secs = self._config.server.drain_timeout_secs
            entry.removed = True
            del self._entries[entry.id]
            self._names = Names([one.config for one in self.entries()], default=self._names.default)
            leaving = asyncio.create_task(self._retire(entry, force, drain_secs), name=f"remove {entry.id}")
            self._loads.add(leaving)
            leaving.add_done_callback(self._loads.discard)
            await asyncio.shield(leaving)
        return entry

    async def _retire(self, entry: Entry, force: bool, drain_secs: float) -> None:
        at = entry.residence
        if len(at.entries) == 1:
            await at.unload(force=force, drain_secs=drain_secs)
            at.entries.remove(entry)
        else:
            at.forget(entry)
            if at.state is State.READY:
                self._tell(Transition(id=entry.id, old=at.state, new=State.UNLOADED, cause="removed"))
            self._around.arbiter.changed()
        self._tidy()

    def set_server(self, server: ServerConfig) -> None:
        """What `[server]` says of models from now on: `keep_alive`, how they are swapped, the time to drain."""
        self._config = msgspec.structs.replace(self._config, server=server)
        for entry in self.entries():
            entry.server_keeps(server.keep_alive)
        self._around.arbiter.set_rules(server)

    def set_budget(self, bytes_: Mapping[str, int]) -> None:
        """New budgets by device; what no longer fits is unloaded when its requests have ended."""
        for device, size in bytes_.items():
            self._around.arbiter.set_budget(device, size)

    async def requantise(self, name: str | None, scheme: str) -> ModelStatus:
        """Serve a model's weights in another quantisation (`none`, `int8`, `int4`); the name means what it meant.

        Raises `InvalidRequest` for a model without weights of its own, and what packing or loading raises.
        """
        entry = self.resolve(name)
        if entry.config.driver.type != "native" or entry.config.weights is None:
            raise InvalidRequest(f"{entry.id} has no weights that could be quantised", param="model_id")
        return await self.change(entry.id, quantization=scheme)

    async def change(self, name: str | None, **keys: object) -> ModelStatus:
        """Change keys of a model's configuration while it serves. What belongs to the name applies at once; for all else a
        loaded model is replaced, and is what it was where that fails: the reason is raised."""
        entry = self.resolve(name)
        async with self._changing(entry):
            before = entry.config
            changed = msgspec.structs.replace(before, **keys)
            if changed == before:
                return entry.status()
            self._renamed(entry, changed)  # names that cannot be are refused before anything is done
            if residence_key(changed) != residence_key(before):
                await self._rebuild(entry, changed)
            self._rename(entry, before, changed)
        return entry.status()

    def _renamed(self, entry: Entry, changed: ModelConfig) -> Names:
        models = [changed if one is entry else one.config for one in self.entries()]
        return Names(models, default=self._names.default)

    def _rename(self, entry: Entry, before: ModelConfig, changed: ModelConfig) -> None:
        self._names = self._renamed(entry, changed)
        if changed.pin != before.pin:
            entry.pinned = changed.pin
        entry.config = changed
        if changed.keep_alive != before.keep_alive:
            entry.keeps()
        entry.residence.keep_again()
        self._around.arbiter.changed()

    async def _rebuild(self, entry: Entry, changed: ModelConfig) -> None:
        old, before = entry.residence, entry.config
        successor = self._residence_for(changed)
        if not successor.entries:
            successor.inherit(old)
        successor.in_change += 1
        try:
            if successor.state is not State.READY:
                await prepare(successor)  # packed first, while the model goes on as it is
            while old.leaving is not None:
                await asyncio.wait({old.leaving})
            entry.config = changed
            if old.state is State.READY or old.progress is not None:
                await self._replace(old, successor, [entry])
            else:
                entry.move(successor)
                self._note_shared(entry)
        except BaseException:
            # else requests have moved over, and what is left is to wait for the old one's end
            if entry.residence is old:
                entry.config = before
            raise
        finally:
            successor.in_change -= 1

    async def _replace(self, old: Residence, successor: Residence, entries: Sequence[Entry]) -> None:
        # names may be the successor's before it is loaded: who wants to change those waits for this change all the same
        self._change_of.setdefault(successor, self._change_of[old])
        successor.in_change += 1
        try:
            drain_secs = self._config.server.drain_timeout_secs
            await Replacement(old, successor, entries, moved=self._note_replaced, drain_secs=drain_secs).run()
        finally:
            successor.in_change -= 1

    @asynccontextmanager
    async def _changing(self, entry: Entry) -> AsyncIterator[Residence]:
        """One change at a time of what answers for a model: that, with nothing else changing it."""
        while True:
            residence = entry.residence
            async with self._change_of.setdefault(residence, asyncio.Lock()):
                if entry.residence is not residence:
                    continue  # somebody else's change has moved it
                entry.refuse_removed()
                residence.in_change += 1
                try:
                    yield residence
                finally:
                    residence.in_change -= 1
                    self._tidy()
                return

    def _tidy(self) -> None:
        """Forget residences that answer for nobody, hold nothing, and will not be gone back to."""
        for residence in list(self._residences):
            if not residence.entries and residence.at_rest:
                del self._residences[residence]
                self._change_of.pop(residence, None)

    # --- the end ----------------------------------------------------------------------------------------------------

    async def drain(self, timeout: float) -> bool:
        """Give out no more leases and wait until those there are have ended; whether they have, in `timeout` s."""
        self._closing = True
        try:
            async with asyncio.timeout(timeout):
                for residence in list(self._residences):
                    await residence.idle()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """Stop every load and end every worker; requests in progress end with an error."""
        self._closing = True
        loads = list(self._loads)
        for task in loads:
            task.cancel()
        await asyncio.gather(*loads, return_exceptions=True)
        await asyncio.gather(*(residence.close() for residence in list(self._residences)))

    async def _preload(self, entry: Entry) -> None:
        try:
            await entry.residence.load(entry, insist=False)
        except NoRoom as error:
            log.warning("%s is left unloaded until it is asked for: %s", entry.id, error.message)
        except InferloomError as error:
            log.error("%s could not be loaded: %s", entry.id, error.message)

    def _note(self, residence: Residence, change: Transition) -> None:
        for entry in list(residence.entries):
            self._tell(msgspec.structs.replace(change, id=entry.id))

    def _note_shared(self, entry: Entry) -> None:
        if entry.state is State.READY:  # others of its names had it loaded
            self._tell(Transition(id=entry.id, old=State.DECLARED, new=State.READY, cause="shared"))

    def _note_replaced(self, residence: Residence, entries: Sequence[Entry]) -> None:
        known = measured(residence.report)
        for entry in entries:
            self._tell(Transition(id=entry.id, old=State.READY, new=State.READY, cause="replaced", **known))

    def _tell(self, change: Transition) -> None:
        log_change(change)
        for observer in self._observers:
            observer(change)

    def _note_progress(self, residence: Residence, progress: LoadProgress) -> None:
        told = residence.replaces if residence.replaces is not None else residence
        for entry in list(told.entries):
            for observer in self._progress_observers:
                observer(entry.id, progress)
