"""All declared models, and the one way to use them: `async with catalog.lease(name) as runner`."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType

from inferloom.catalog.entry import Entry
from inferloom.catalog.lifecycle import ModelStatus, State, Transition
from inferloom.catalog.names import Names
from inferloom.config.schema import Config, ModelConfig
from inferloom.errors import InferloomError, InvalidRequest, ModelUnavailable
from inferloom.runners.base import ModelRunner
from inferloom.runners.factory import make_runner
from inferloom.sources.defaults import with_defaults
from inferloom.types import LoadProgress
from inferloom.worker.pool import WorkerPool

__all__ = ["Catalog", "Entry", "Lease", "ModelStatus"]

log = logging.getLogger("inferloom.catalog")

Factory = Callable[[ModelConfig, Config, WorkerPool, Callable[[InferloomError], None]], ModelRunner]


class Lease(AbstractAsyncContextManager[ModelRunner]):
    """Holds a loaded model for one request. An `async with` block that ends without an exception has served."""

    __slots__ = ("_deadline", "_entry", "_runner")

    def __init__(self, entry: Entry, *, deadline: float | None) -> None:
        self._entry = entry
        self._deadline = deadline
        self._runner: ModelRunner | None = None

    async def __aenter__(self) -> ModelRunner:
        self._runner = await self._entry.acquire(deadline=self._deadline)
        return self._runner

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._runner is not None:
            self._entry.release(self._runner, served=error is None)
            self._runner = None


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
        created = int(time.time())
        make = factory or _from_driver

        def declare(model: ModelConfig) -> Entry:
            entry = Entry(
                model,
                created=created,
                make_runner=lambda on_death: make(model, config, pool, on_death),
                observe=self._note,
            )
            entry.on_progress = self._note_progress
            return entry

        self._entries = {model.name: declare(model) for model in config.model}

    # --- what there is ----------------------------------------------------------------------------------------------

    def entries(self) -> list[Entry]:
        """All models, in the configuration's order."""
        return list(self._entries.values())

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

    # --- using models -----------------------------------------------------------------------------------------------

    def lease(
        self, name: str | None, *, deadline: float | None = None
    ) -> AbstractAsyncContextManager[ModelRunner]:
        """A model's runner for the length of an `async with`, loaded first where it is not. `deadline`
        (time.monotonic()) bounds the wait; without one the configuration's load timeout does."""
        if self._closing:
            raise ModelUnavailable("the server is shutting down", retry_after=5.0)
        entry = self.resolve(name)
        if deadline is None and self._config.server.load_timeout_secs > 0:
            deadline = time.monotonic() + self._config.server.load_timeout_secs
        return Lease(entry, deadline=deadline)

    async def start(self) -> None:
        """Begin loading every model that is not lazy; returns at once, failures show in the status."""
        for entry in self.entries():
            if not entry.config.lazy:
                task = asyncio.create_task(self._preload(entry), name=f"preload {entry.id}")
                self._loads.add(task)
                task.add_done_callback(self._loads.discard)

    async def load(self, name: str) -> ModelStatus:
        """Load now, without regard to an earlier failure; a loaded model is left as it is."""
        entry = self.resolve(name)
        if self._closing:
            raise ModelUnavailable("the server is shutting down", retry_after=5.0)
        await entry.load()
        return entry.status()

    async def reload(self, name: str) -> ModelStatus:
        """Load what is unloaded or failed. A loaded model is left as it is: `unload` and then `load` renews it."""
        return await self.load(name)

    async def unload(self, name: str, *, force: bool = False) -> ModelStatus:
        """Let go of the model's memory; returns when the process is gone. Requests in progress have the
        configuration's drain time, with `force` none."""
        entry = self.resolve(name)
        await entry.unload(force=force, drain_secs=self._config.server.drain_timeout_secs)
        return entry.status()

    async def requantise(self, name: str | None, scheme: str) -> ModelStatus:
        """Serve a model's weights in another quantisation (`none`, `int8`, `int4`, `int4-all`); the name means what it meant.

        Raises `InvalidRequest` for a model without weights of its own, and what packing or loading raises.
        """
        entry = self.resolve(name)
        if entry.config.driver.type != "native" or entry.config.weights is None:
            raise InvalidRequest(f"{entry.id} has no weights that could be quantised", param="model_id")
        await entry.requantise(scheme, drain_secs=self._config.server.drain_timeout_secs)
        return entry.status()

    # --- the end ----------------------------------------------------------------------------------------------------

    async def drain(self, timeout: float) -> bool:
        """Give out no more leases and wait until those there are have ended; whether they have, in `timeout` s."""
        self._closing = True
        try:
            async with asyncio.timeout(timeout):
                for entry in self.entries():
                    await entry.idle()
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
        await asyncio.gather(*(entry.close() for entry in self.entries()))

    async def _preload(self, entry: Entry) -> None:
        try:
            await entry.load()
        except InferloomError as error:
            log.error("%s could not be loaded: %s", entry.id, error.message)

    def _note(self, change: Transition) -> None:
        if change.new is State.READY and change.load_seconds is not None:
            log.info("%s: ready in %.2f s", change.id, change.load_seconds)
        elif change.new is State.FAILED:
            log.warning("%s: failed: %s", change.id, change.reason)
        else:
            log.info("%s: %s", change.id, change.new)
        for observer in self._observers:
            observer(change)

    def _note_progress(self, model: str, progress: LoadProgress) -> None:
        for observer in self._progress_observers:
            observer(model, progress)


def _from_driver(
    model: ModelConfig, config: Config, pool: WorkerPool, on_death: Callable[[InferloomError], None]
) -> ModelRunner:
    return make_runner(model, config, pool, on_death=on_death)
