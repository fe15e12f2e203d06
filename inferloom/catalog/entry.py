"""One declared name: what belongs to the name alone, and the residence that answers for it."""

from __future__ import annotations

import asyncio
import math
import time
from typing import TYPE_CHECKING

import msgspec

from inferloom.catalog import prospects
from inferloom.catalog.lifecycle import ModelStatus, State, status_word
from inferloom.catalog.line import Line
from inferloom.catalog.residence import Residence
from inferloom.config.changing import OF_THE_NAME
from inferloom.config.quantities import keep_alive_secs
from inferloom.config.schema import ModelConfig
from inferloom.errors import ModelNotFound, ModelUnavailable, RateLimited, RequestTimeout
from inferloom.runners.base import ModelRunner
from inferloom.runners.presented import Presented

if TYPE_CHECKING:
    from inferloom.catalog.replacement import Replacement

GONE = "no_loader_config"
_LOADING = (State.LOADING, State.WARMING)


class Entry:
    """A model of the configuration. Used from one event loop; `Catalog` is the way in."""

    def __init__(
        self, config: ModelConfig, residence: Residence, *, created: int, keep_alive: float | str
    ) -> None:
        """`keep_alive`: the server's, where the model has none of its own."""
        self.id = config.name
        self.config = config
        self.created = created  # Unix time
        self.pinned = config.pin
        self.line = Line(time.monotonic)  # of requests that wait for it
        self.leases = 0  # requests that hold it
        self.removed = False  # it is no model of the server any more
        self.replacement: Replacement | None = None  # in progress, of what answers for it
        self._server_keep_alive = keep_alive
        self.residence = residence
        residence.entries.append(self)

    # --- what is known ----------------------------------------------------------------------------------------------

    @property
    def aliases(self) -> tuple[str, ...]:
        return tuple(self.config.aliases)

    @property
    def state(self) -> State:
        return self.residence.state

    @property
    def keep_alive(self) -> float:
        """Seconds that it stays loaded after its last request, infinity: for ever."""
        own = self.config.keep_alive
        return keep_alive_secs(self._server_keep_alive if own is None else own)

    @property
    def runner(self) -> ModelRunner | None:
        """The runner of a loaded model, to look at (statistics); requests take a lease."""
        return self.residence.runner

    def server_keeps(self, keep_alive: float | str) -> None:
        """The server's `keep_alive` is another one from now on."""
        self._server_keep_alive = keep_alive
        if self.config.keep_alive is None:
            self.keeps()

    def keep(self, seconds: float) -> None:
        """It may stay idle for so long from now on, with 0 until one request has ended."""
        self.residence.keeping.kept(self.id, keep=seconds)
        self.residence.keep_again()

    def keeps(self) -> None:
        """Its `keep_alive` is another one: it counts from now."""
        self.residence.keeping.changed(self.id, keep=self.keep_alive)
        self.residence.keep_again()

    def move(self, residence: Residence) -> None:
        """From now on another residence answers for this name; leases stay where they were taken."""
        self.residence.forget(self)
        self.residence = residence
        residence.entries.append(self)

    @property
    def expected_secs(self) -> float | None:
        """Until those who wait are served, where that depends on others' memory and can be told."""
        at = self.residence
        if at.state is State.READY:
            waits = at.turn.yielding
        else:
            waits = at.progress is not None and at.progress.stage == "room" and at.reservation is None
        return prospects.expected_secs(at.arbiter, at) if waits else None

    def status(self) -> ModelStatus:
        at = self.residence
        coming = at.successor if at.successor is not None and at.successor.state in _LOADING else None
        loading = at.progress if at.state in _LOADING else coming.progress if coming is not None else None
        failed = at.state is State.FAILED
        return ModelStatus(
            id=self.id,
            word=GONE if at.source_is_gone() else status_word(at.state, at.tries.error),
            state=at.state,
            since=at.since,
            stage=loading.stage if loading else None,
            fraction=loading.fraction if loading else None,
            detail=loading.detail if loading else "",
            reason=at.tries.error.message if failed and at.tries.error else None,
            retry_at=at.tries.retry_at if failed else None,
            card=at.card if at.runner is None else at.runner.card(),  # its pages may be others by now
            pid=getattr(at.runner, "pid", None),
            leases=self.leases,
            waiting=len(self.line),
            yielding=at.state is State.READY and at.turn.yielding,
            expected_secs=self.expected_secs,
            loads=at.loads,
            load_seconds=at.report.seconds if at.report else None,
            stages=at.report.stages if at.report else {},
            evictions=at.evictions,
            bytes=at.bytes,
            freed_bytes=at.freed_bytes,
            expires_at=at.keeping.until,
            keep_alive=self.keep_alive,
            pinned=self.pinned,
            priority=self.config.priority,
            group=self.config.group,
            shares=tuple(entry.id for entry in at.entries if entry is not self),
            replacing=at.successor is not None,
        )

    # --- leases -----------------------------------------------------------------------------------------------------

    async def acquire(self, *, deadline: float | None) -> tuple[Residence, ModelRunner]:
        """The loaded model's runner, counted until `release`. Loads it first where that is needed.

        Raises `RequestTimeout` at the deadline, `ModelUnavailable` and `LoadFailed` where it cannot be had, `RateLimited`
        where too many wait for it.
        """
        self.residence.holders.asked()
        if not self.residence.open:
            await self._wait(deadline)
        self.leases += 1
        return self.residence, self.residence.take()

    async def _wait(self, deadline: float | None) -> None:
        self._refuse(math.inf if deadline is None else max(0.0, deadline - time.monotonic()))
        ticket = self.line.join()
        try:
            async with asyncio.timeout(None if deadline is None else deadline - time.monotonic()):
                while not (self.residence.open or (ticket.admitted and self.state is State.READY)):
                    self.refuse_removed()
                    await self.residence.become_ready(self, paced=True)
        except TimeoutError:
            retry_after = self.expected_secs or 1.0
            raise RequestTimeout(
                f"the model {self.id} was not loaded in time ({self.state})", retry_after=retry_after
            ) from None
        finally:
            self.line.leave(ticket)
            self.residence.left()

    def refuse_removed(self) -> None:
        """Raise `ModelNotFound` where it is no model of the server any more."""
        if self.removed:
            raise ModelNotFound(f"model not found: {self.id!r} was removed.", param="model")

    def _refuse(self, seconds: float) -> None:
        """Raise where a request that can wait for so long had better not."""
        at = self.residence
        refusal = prospects.refusal(at.arbiter, at, len(self.line), deadline_secs=seconds)
        if refusal is None:
            return
        if refusal.full:
            raise RateLimited(
                f"{len(self.line)} requests wait for the model {self.id} already ([server] max_waiting)",
                retry_after=refusal.retry_after,
            )
        raise ModelUnavailable(
            f"the model {self.id} must be loaded first, which takes longer than the {seconds:.3g} s that there are for it",
            retry_after=refusal.retry_after,
        )

    def release(
        self, residence: Residence, runner: ModelRunner, *, served: bool, keep_alive: float | None
    ) -> None:
        """Give a lease back. `served`: nothing went wrong. `keep_alive`: the request's own."""
        self.leases -= 1
        keep = self.keep_alive if keep_alive is None else keep_alive
        residence.give_back(runner, name=self.id, keep=keep, served=served)

    def presented(self, runner: ModelRunner) -> ModelRunner:
        """The runner as this name shows it."""
        prompt = self.config.system_prompt
        return runner if prompt is None else Presented(runner, system_prompt=prompt)


def residence_key(model: ModelConfig) -> bytes:
    """The same for models that can share one worker: those whose configurations differ in what belongs to the name alone.
    Models without a source have nothing to share."""
    return msgspec.json.encode(
        {**msgspec.structs.asdict(shared_part(model)), "name": "" if model.weights else model.name}
    )


def shared_part(model: ModelConfig) -> ModelConfig:
    """The configuration of a residence: the name is the first entry's, to be called something; the source goes by one key."""
    defaults = {
        field.name: field.default
        for field in msgspec.structs.fields(ModelConfig)
        if field.name in OF_THE_NAME - {"name", "aliases"}
    }
    return msgspec.structs.replace(model, source=model.weights, hf_repo=None, aliases=[], **defaults)
