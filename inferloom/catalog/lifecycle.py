"""The life of a model as data: its states, what may follow what, and what each is called over HTTP."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import msgspec

from inferloom.errors import InferloomError, SourceNotFound
from inferloom.types import LoadReport, ModelCard

log = logging.getLogger("inferloom.catalog")


class State(StrEnum):
    DECLARED = "declared"
    LOADING = "loading"
    WARMING = "warming"
    READY = "ready"
    DRAINING = "draining"
    UNLOADING = "unloading"
    UNLOADED = "unloaded"
    FAILED = "failed"


NEXT: Mapping[State, frozenset[State]] = {
    State.DECLARED: frozenset({State.LOADING, State.UNLOADED}),
    State.LOADING: frozenset({State.WARMING, State.FAILED, State.UNLOADING, State.UNLOADED}),
    State.WARMING: frozenset({State.READY, State.FAILED, State.UNLOADING, State.UNLOADED}),
    State.READY: frozenset({State.DRAINING, State.FAILED}),
    State.DRAINING: frozenset({State.UNLOADING}),
    State.UNLOADING: frozenset({State.UNLOADED}),
    State.UNLOADED: frozenset({State.LOADING}),
    State.FAILED: frozenset({State.LOADING, State.UNLOADED}),
}

WORD: Mapping[State, str] = {
    State.DECLARED: "unloaded",
    State.LOADING: "reloading",
    State.WARMING: "reloading",
    State.READY: "loaded",
    State.DRAINING: "loaded",
    State.UNLOADING: "loaded",
    State.UNLOADED: "unloaded",
    State.FAILED: "internal_error",
}


def status_word(state: State, error: InferloomError | None) -> str:
    """mistral.rs's word for a state; a failure because the source is gone has its own."""
    if state is State.FAILED and isinstance(error, SourceNotFound):
        return "no_loader_config"
    return WORD[state]


class ModelBytes(msgspec.Struct, frozen=True, kw_only=True):
    """What the ledger holds for a model in memory, and what its process was measured to take after its load."""

    weights: int = 0
    kv: int = 0
    workspace: int = 0
    estimate: int = 0  # the sum of the three
    expected: int = 0  # of them, what is there before the first request: weights, and an idle worker
    measured: int | None = None  # PSS
    error: float | None = None  # measured / expected - 1


class ModelStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a model now. `since`, `retry_at` and `expires_at` are time.monotonic() seconds."""

    id: str
    word: str
    state: State
    since: float
    stage: str | None = None  # of a load in progress, also of one that replaces the model
    fraction: float | None = None
    detail: str = ""
    reason: str | None = None  # of a failure
    retry_at: float | None = None
    card: ModelCard | None = None  # also of an unloaded model, once it was loaded
    pid: int | None = None
    leases: int = 0  # requests that hold the model
    waiting: int = 0  # requests that wait for it
    yielding: bool = False  # it is loaded and gives no leases: others need its room
    # until those who wait are served, where that depends on others' memory
    expected_secs: float | None = None
    loads: int = 0  # completed since the start
    load_seconds: float | None = None  # of the last one
    stages: dict[str, float] = {}  # of the last load, seconds
    evictions: int = 0  # times it was unloaded for the sake of others
    bytes: ModelBytes | None = None  # of a model in memory
    freed_bytes: int | None = None  # by its last unload, as measured before
    expires_at: float | None = None  # when it will be unloaded if nothing is asked of it
    keep_alive: float = math.inf  # seconds; inf: for ever
    pinned: bool = False
    priority: int = 0
    group: str | None = None
    shares: tuple[str, ...] = ()  # other models that are this one under another name: one worker for all
    replacing: bool = False  # its successor is being loaded


class Transition(msgspec.Struct, frozen=True, kw_only=True):
    """One change of state, as observers are told of it."""

    id: str
    old: State
    new: State
    reason: str | None = None
    load_seconds: float | None = None  # with `ready`
    stages: dict[str, float] = {}  # with `ready`: seconds of each stage of the load
    # of a departure nobody asked for: evicted, expired; of what took a model's place: replaced; of a name that was given to a
    # model that is there already: shared; of one that was taken back: removed
    cause: str | None = None


def measured(report: LoadReport | None) -> dict[str, Any]:
    """What a transition says of the load that led to it."""
    return {} if report is None else {"load_seconds": report.seconds, "stages": report.stages}


def log_change(change: Transition) -> None:
    """One line of the log, as loud as what it says."""
    if change.new is State.READY and change.load_seconds is not None:
        log.info("%s: ready in %.2f s", change.id, change.load_seconds)
    elif change.new is State.FAILED:
        log.warning("%s: failed: %s", change.id, change.reason)
    elif change.cause is not None:
        log.info("%s: %s (%s)", change.id, change.new, change.reason or change.cause)
    else:
        log.info("%s: %s", change.id, change.new)
