"""One declared model: its state, its leases, its one load at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from inferloom.catalog.lifecycle import NEXT, ModelStatus, State, Transition, status_word
from inferloom.config.schema import ModelConfig
from inferloom.errors import (
    InferloomError,
    InvalidFormat,
    LoadFailed,
    ModelUnavailable,
    OutOfMemory,
    RequestTimeout,
    SourceError,
    Unsupported,
)
from inferloom.runners.base import DeviceContext, ModelRunner, WeightSource
from inferloom.runners.preparation import checkpoint_of
from inferloom.sources.reference import PathRef, parse
from inferloom.types import LoadProgress, LoadReport, ModelCard
from inferloom.worker.pacing import retry_delay

MakeRunner = Callable[[Callable[[InferloomError], None]], ModelRunner]
Observer = Callable[[Transition], None]

# Trying again at once cannot help where the cause lies in the files or in the machine's size.
LASTING = (SourceError, InvalidFormat, OutOfMemory)
GONE = "no_loader_config"


class Entry:
    """A model of the configuration. Used from one event loop; `Catalog` is the way in."""

    def __init__(
        self, config: ModelConfig, *, created: int, make_runner: MakeRunner, observe: Observer
    ) -> None:
        self.id = config.name
        self.aliases = tuple(config.aliases)
        self.config = config
        self.created = created  # Unix time
        self.state = State.DECLARED
        # what was a path once is never looked for on the hub, whatever becomes of the path
        self._place = _place(config.weights)
        self._make_runner = make_runner
        self._observe = observe
        self.on_progress: Callable[[str, LoadProgress], None] | None = None  # told of each report of a load
        self._since = time.monotonic()
        self._runner: ModelRunner | None = None
        self._card: ModelCard | None = None
        self._report: LoadReport | None = None
        self._progress: LoadProgress | None = None
        self._error: InferloomError | None = None
        self._failures = 0  # in a row, crashes and failed loads alike
        self._retry_at: float | None = None
        self._leases = 0
        self._waiting = 0
        self._loads = 0
        self._flight: asyncio.Task[None] | None = None  # the load in progress
        self._wanted_by = 0  # who waits for that load
        self._called_off: asyncio.Task[None] | None = None  # the last load that was cancelled
        self._stopped: asyncio.Task[None] | None = None  # the last load that an unload stopped
        self._leaving: asyncio.Task[None] | None = None  # the unload in progress
        self._idle = asyncio.Event()
        self._idle.set()
        self._force = asyncio.Event()
        self._closed = False
        self._changing = asyncio.Lock()  # one change of `config` at a time

    # --- what is known ----------------------------------------------------------------------------------------------

    @property
    def runner(self) -> ModelRunner | None:
        """The runner of a loaded model, to look at (statistics); requests take a lease."""
        return self._runner

    @property
    def leases(self) -> int:
        return self._leases

    @property
    def waiting(self) -> int:
        return self._waiting

    def status(self) -> ModelStatus:
        loading = self._progress if self.state in (State.LOADING, State.WARMING) else None
        failed = self.state is State.FAILED
        return ModelStatus(
            id=self.id,
            word=GONE if self._source_is_gone() else status_word(self.state, self._error),
            state=self.state,
            since=self._since,
            stage=loading.stage if loading else None,
            fraction=loading.fraction if loading else None,
            detail=loading.detail if loading else "",
            reason=self._error.message if failed and self._error else None,
            retry_at=self._retry_at if failed else None,
            card=self._card,
            pid=getattr(self._runner, "pid", None),
            leases=self._leases,
            waiting=self._waiting,
            loads=self._loads,
            load_seconds=self._report.seconds if self._report else None,
        )

    def _source_is_gone(self) -> bool:
        """Whether a model that is not loaded could not be: its folder or file is not there any more."""
        if self.state not in (State.DECLARED, State.UNLOADED) or self._place is None:
            return False
        return not self._place.exists()

    # --- leases -----------------------------------------------------------------------------------------------------

    async def acquire(self, *, deadline: float | None) -> ModelRunner:
        """The loaded model's runner, counted until `release`. Loads it first where that is needed.

        Raises `RequestTimeout` at the deadline, `ModelUnavailable` and `LoadFailed` where it cannot be had.
        """
        while self.state is not State.READY:
            self._waiting += 1
            try:
                async with asyncio.timeout(None if deadline is None else deadline - time.monotonic()):
                    await self._become_ready(paced=True)
            except TimeoutError:
                raise RequestTimeout(
                    f"the model {self.id} was not loaded in time ({self.state})", retry_after=1.0
                ) from None
            finally:
                self._waiting -= 1
        assert self._runner is not None
        self._leases += 1
        self._idle.clear()
        return self._runner

    def release(self, runner: ModelRunner, *, served: bool) -> None:
        """Give a lease back. `served`: nothing went wrong, so what crashed before is forgotten."""
        self._leases -= 1
        if not self._leases:
            self._idle.set()
        if served and runner is self._runner and self.state is State.READY:
            self._failures = 0

    # --- loading ----------------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Load now, whatever failed before; nothing to do where it is loaded."""
        while self.state is not State.READY:
            await self._become_ready(paced=False)

    async def _become_ready(self, *, paced: bool) -> None:
        """Take part in what leads to a loaded model; may return before it is one."""
        if self._closed:
            raise ModelUnavailable("the server is shutting down", retry_after=5.0)
        if self._leaving is not None:
            await asyncio.shield(self._leaving)
            return
        if self._flight is None:
            if paced and self.state is State.FAILED:
                self._refuse_early()
            self._take_off()
        flight = self._flight
        assert flight is not None
        self._wanted_by += 1
        try:
            await asyncio.shield(flight)
        except asyncio.CancelledError:
            if not flight.cancelled() or _being_cancelled():
                raise
            if flight is self._stopped and not paced:  # a request goes on waiting and loads it again
                raise ModelUnavailable(
                    f"the load of {self.id} was stopped by an unload; ask again to load it", retry_after=1.0
                ) from None
            return  # given up by those who waited before: the next round starts another
        finally:
            if flight is self._flight:
                self._wanted_by -= 1
                if not self._wanted_by and not flight.done():
                    self._call_off(flight)  # the last one who waited has left

    def _take_off(self) -> None:
        self._flight = asyncio.create_task(self._load(), name=f"load {self.id}")
        self._flight.add_done_callback(self._land)
        self._wanted_by = 0

    def _call_off(self, flight: asyncio.Task[None]) -> None:
        """Once: a second cancellation would interrupt the load's own clearing up."""
        if flight is not self._called_off:
            self._called_off = flight
            flight.cancel()

    def _land(self, flight: asyncio.Task[None]) -> None:
        self._flight = self._progress = None
        if not flight.cancelled():
            flight.exception()  # it is in the status, whoever waits raises it, and perhaps nobody does

    def _refuse_early(self) -> None:
        wait = (self._retry_at or 0.0) - time.monotonic()
        if wait > 0 and self._error is not None:
            raise ModelUnavailable(
                f"the model {self.id} cannot be loaded: {self._error.message} (next try in {wait:.1f} s)",
                retry_after=wait,
            )

    async def _load(self) -> None:
        """The one load: at most two tries, the second at once where the cause may have passed."""
        try:
            while True:
                self._go(State.LOADING)
                self._progress = LoadProgress("start")
                try:
                    await self._try_load()
                except InferloomError as error:
                    self._fail(error)
                    if self._failures > 1 or isinstance(error, LASTING):
                        raise
                else:
                    return
        except asyncio.CancelledError:
            self._go(State.UNLOADED)
            raise

    async def _try_load(self) -> None:
        model = self.config
        self._place = self._place or _place(model.weights)
        try:
            runner = self._make_runner(self._died)
            report = await runner.load_weights(
                DeviceContext(devices=tuple(model.driver.device)),
                self._weight_source(model),
                self._note_progress,
            )
            self._go(State.WARMING)
        except Unsupported as error:
            # whoever asks did nothing wrong: it is the checkpoint that this version cannot run
            raise InvalidFormat(error.message) from error
        except InferloomError:
            raise
        except (
            Exception
        ) as error:  # a defect of ours or of a library: it must not leave the model loading for ever
            raise LoadFailed(f"loading {self.id} failed: {type(error).__name__}: {error}") from error
        self._runner, self._error = runner, None
        self._report = report
        self._card = runner.card()
        self._loads += 1
        self._go(State.READY)

    def _weight_source(self, model: ModelConfig) -> WeightSource:
        return WeightSource(
            source=str(self._place or model.weights or ""),
            tokenizer=model.tok_model_id,
            quantization=model.quantization,
        )

    async def requantise(self, scheme: str, *, drain_secs: float) -> None:
        """Serve the same weights in another quantisation. They are packed first, while the model goes on as it is; then
        requests in progress have `drain_secs` to end. Where it fails the model is again what it was, and the reason is raised.
        """
        async with self._changing:
            before = self.config
            changed = msgspec.structs.replace(before, quantization=scheme)
            if changed == before:
                return
            await checkpoint_of(self._weight_source(changed))
            self.config = changed
            if self._flight is None and self.state is not State.READY:
                return
            await self.unload(force=False, drain_secs=drain_secs)
            try:
                await self.load()
            except InferloomError:
                self.config = before
                self._forget()
                await self.load()
                raise

    def _note_progress(self, progress: LoadProgress) -> None:
        self._progress = progress
        if self.on_progress is not None:
            self.on_progress(self.id, progress)

    def _fail(self, error: InferloomError) -> None:
        self._failures += 1
        # an error that will last is not worth the retry at once
        pause = max(retry_delay(self._failures), 1.0 if isinstance(error, LASTING) else 0.0)
        self._retry_at = time.monotonic() + pause
        self._error = error
        self._go(State.FAILED)

    def _died(self, error: InferloomError) -> None:
        """The worker of a loaded model is gone; its requests have failed by now."""
        if self.state is not State.READY:
            return  # an unload is on its way and will find it gone
        self._runner = None
        self._fail(error)
        if self._failures == 1 and not self._closed:
            # the one retry at once: nobody has to ask for it
            self._take_off()
            self._wanted_by = 1

    # --- unloading --------------------------------------------------------------------------------------------------

    async def unload(self, *, force: bool, drain_secs: float) -> None:
        """Returns when the process is gone. Without `force`, requests in progress have `drain_secs` to end.

        A load in progress is stopped; a failure is forgotten. Several callers share one unload.
        """
        if force:
            self._force.set()
        if self._leaving is None:
            if self._flight is None and self.state is not State.READY:
                self._forget()
                return
            self._leaving = asyncio.create_task(self._leave(drain_secs), name=f"unload {self.id}")
        await asyncio.shield(self._leaving)

    async def close(self) -> None:
        """Unload at once and for good: whoever still waits is told, and nothing is loaded any more."""
        self._closed = True
        await self.unload(force=True, drain_secs=0.0)

    async def _leave(self, drain_secs: float) -> None:
        try:
            flight = self._flight
            if flight is not None:
                self._stopped = flight
                self._call_off(flight)
                await asyncio.wait({flight})
            if self.state is State.READY:
                self._go(State.DRAINING)
                await self._drain(drain_secs)
                self._go(State.UNLOADING)
                runner, self._runner = self._runner, None
                if runner is not None:
                    await runner.close()
                self._go(State.UNLOADED)
            self._forget()
        finally:
            self._force.clear()
            self._leaving = None

    async def _drain(self, seconds: float) -> None:
        waits = [asyncio.create_task(self._idle.wait()), asyncio.create_task(self._force.wait())]
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def _forget(self) -> None:
        self._failures, self._retry_at, self._error = 0, None, None
        if self.state in (State.DECLARED, State.FAILED):
            self._go(State.UNLOADED)

    async def idle(self) -> None:
        """Returns when no lease is held."""
        await self._idle.wait()

    def _go(self, new: State) -> None:
        old = self.state
        if new is old:
            return
        assert new in NEXT[old], f"{self.id}: {old} → {new}"
        self.state = new
        self._since = time.monotonic()
        failed, ready = new is State.FAILED, new is State.READY
        self._observe(
            Transition(
                id=self.id,
                old=old,
                new=new,
                reason=self._error.message if failed and self._error is not None else None,
                load_seconds=self._report.seconds if ready and self._report is not None else None,
            )
        )


def _place(source: str | None) -> Path | None:
    """The path a source is, absolute; None for what is fetched, and for what is not there."""
    if not source:
        return None
    try:
        ref = parse(source).ref
    except SourceError:
        return None
    return ref.path if isinstance(ref, PathRef) else None


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
