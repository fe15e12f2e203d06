"""What happens to the models, as it happens, for whoever subscribes: a bounded queue each, so that nobody's slowness is
another's memory.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection
from typing import ClassVar, Literal

import msgspec

from inferloom.catalog.lifecycle import State, Transition, status_word
from inferloom.errors import ModelNotFound
from inferloom.types import LoadProgress

QUEUE = 1024  # events that wait for one subscriber; one more and it is dropped
PROGRESS_SECS = 0.2  # between two reports of one model's load

_LOADING = (State.LOADING, State.WARMING)


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened, encoded as it is. `time` is Unix time; `name` is what SSE calls the event."""

    name: ClassVar[str] = "event"

    id: str  # the model's
    time: float


class ModelChanged(Event, frozen=True, kw_only=True):
    """A change of state; `status` is the word of the HTTP API for it."""

    name: ClassVar[str] = "model"

    old: State
    state: State
    status: str
    reason: str | None = None  # of a failure
    cause: str | None = None  # as a `Transition` has it
    load_seconds: float | None = None  # with `ready`


class LoadProgressed(Event, frozen=True, kw_only=True):
    name: ClassVar[str] = "load_progress"

    stage: str
    fraction: float | None = None
    detail: str = ""


class Evicted(Event, frozen=True, kw_only=True):
    """A model gives way to others; its own changes of state follow."""

    name: ClassVar[str] = "evicted"

    reason: str | None = None


class Expired(Event, frozen=True, kw_only=True):
    """A model was idle for as long as its keep_alive allows; its own changes of state follow."""

    name: ClassVar[str] = "expired"

    reason: str | None = None


Change = Literal["added", "changed", "removed"]


class ConfigChanged(Event, frozen=True, kw_only=True):
    """A model was declared, changed or removed while the server ran."""

    name: ClassVar[str] = "config"

    change: Change


class ConfigRead(Event, frozen=True, kw_only=True):
    """The configuration's file was read again; `id` is empty. `message`: what holds now, or what is wrong with it."""

    name: ClassVar[str] = "config"

    change: Literal["applied", "refused"]
    message: str


# Causes of a transition that are told in an event of their own.
CAUSES: dict[str, type[Evicted] | type[Expired]] = {"evicted": Evicted, "expired": Expired}


class Subscription:
    """What one subscriber has not read yet. Closed by the hub, or by the subscriber, who then is forgotten."""

    def __init__(self, hub: Events, models: Collection[str] | None, limit: int) -> None:
        self._hub = hub
        self._models = models
        self._limit = limit
        self._queue: deque[Event] = deque()
        self._news = asyncio.Event()
        self.overflowed = False  # it was too slow: the events after those in the queue are lost
        self.ended = False  # nothing follows what is in the queue

    def wants(self, model: str) -> bool:
        return self._models is None or model in self._models

    def put(self, event: Event) -> None:
        """Called by the hub."""
        if len(self._queue) >= self._limit:
            self.overflowed = True
            self.close()
            return
        self._queue.append(event)
        self._news.set()

    async def take(self) -> list[Event]:
        """Everything that happened since the last call, waiting for at least one event; an empty list at the end."""
        while not self._queue and not self.ended:
            self._news.clear()
            await self._news.wait()
        events = list(self._queue)
        self._queue.clear()
        return events

    def close(self) -> None:
        """Nothing more is put in; what is there can still be taken. Idempotent."""
        self.ended = True
        self._hub.forget(self)
        self._news.set()


class Events:
    """The hub. Used from one event loop; `status_word` says what the HTTP API calls a model's state just now."""

    def __init__(self, status_word: Callable[[str], str], *, limit: int = QUEUE) -> None:
        """`status_word` may raise `ModelNotFound` for a model that was removed and is on its way out."""
        self._status_word = status_word
        self._limit = limit
        self._subscriptions: list[Subscription] = []
        self._paces: dict[str, _Pace] = {}
        self._closed = False

    def __len__(self) -> int:
        """How many subscribe."""
        return len(self._subscriptions)

    def subscribe(self, models: Collection[str] | None = None) -> Subscription:
        """What happens from now on, to some models or (None) to all of them."""
        subscription = Subscription(self, models, self._limit)
        if self._closed:
            subscription.close()
        else:
            self._subscriptions.append(subscription)
        return subscription

    def forget(self, subscription: Subscription) -> None:
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)

    def publish(self, event: Event) -> None:
        for subscription in list(self._subscriptions):
            if subscription.wants(event.id):
                subscription.put(event)

    def close(self) -> None:
        """End every subscription, those to come too."""
        self._closed = True
        for pace in self._paces.values():
            pace.stop()
        self._paces.clear()
        for subscription in list(self._subscriptions):
            subscription.close()

    # observers of the catalog
    def changed(self, change: Transition) -> None:
        if change.new not in _LOADING and (pace := self._paces.get(change.id)) is not None:
            pace.forget()  # what it would still say of the load is no news any more
        if not self._subscriptions:
            return
        now = time.time()
        if change.cause in CAUSES and change.new is State.DRAINING:
            self.publish(CAUSES[change.cause](id=change.id, time=now, reason=change.reason))
        self.publish(
            ModelChanged(
                id=change.id,
                time=now,
                old=change.old,
                state=change.new,
                status=self._word(change),
                reason=change.reason,
                cause=change.cause,
                load_seconds=change.load_seconds,
            )
        )

    def _word(self, change: Transition) -> str:
        try:
            return self._status_word(change.id)
        except ModelNotFound:
            return status_word(change.new, None)

    def configured(self, model: str, change: Change) -> None:
        """A model was declared, changed or removed at run time."""
        self.publish(ConfigChanged(id=model, time=time.time(), change=change))

    def read(self, change: Literal["applied", "refused"], message: str) -> None:
        """The configuration's file was read again; whoever watches some models alone is not told."""
        self.publish(ConfigRead(id="", time=time.time(), change=change, message=message))

    def progressed(self, model: str, progress: LoadProgress) -> None:
        """Thinned to five reports a second; the last one before a silence is told as well."""
        if not self._subscriptions:
            return
        pace = self._paces.get(model)
        if pace is None:
            pace = self._paces[model] = _Pace(lambda last: self._tell_progress(model, last))
        pace.report(progress)

    def _tell_progress(self, model: str, progress: LoadProgress | None) -> None:
        if progress is None:
            del self._paces[model]
            return
        self.publish(
            LoadProgressed(
                id=model,
                time=time.time(),
                stage=progress.stage,
                fraction=progress.fraction,
                detail=progress.detail,
            )
        )


class _Pace:
    """The reports of one model: one at once, then the latest each time `PROGRESS_SECS` have passed, then None."""

    def __init__(self, tell: Callable[[LoadProgress | None], None]) -> None:
        self._tell = tell
        self._latest: LoadProgress | None = None
        self._timer: asyncio.TimerHandle | None = None

    def report(self, progress: LoadProgress) -> None:
        self._latest = progress
        if self._timer is None:
            self._tick()

    def forget(self) -> None:
        self._latest = None

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _tick(self) -> None:
        latest, self._latest = self._latest, None
        if latest is not None:
            self._timer = asyncio.get_running_loop().call_later(PROGRESS_SECS, self._tick)
        self._tell(latest)
