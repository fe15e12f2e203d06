"""The life of a model as data: its states, what may follow what, and what each is called over HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import msgspec

from inferloom.errors import InferloomError, SourceNotFound
from inferloom.types import ModelCard


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


class ModelStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a model now. `since` and `retry_at` are time.monotonic() seconds."""

    id: str
    word: str
    state: State
    since: float
    stage: str | None = None  # of a load in progress
    fraction: float | None = None
    detail: str = ""
    reason: str | None = None  # of a failure
    retry_at: float | None = None
    card: ModelCard | None = None  # also of an unloaded model, once it was loaded
    pid: int | None = None
    leases: int = 0  # requests that hold the model
    waiting: int = 0  # requests that wait for it
    loads: int = 0  # completed since the start
    load_seconds: float | None = None  # of the last one


class Transition(msgspec.Struct, frozen=True, kw_only=True):
    """One change of state, as observers are told of it."""

    id: str
    old: State
    new: State
    reason: str | None = None
    load_seconds: float | None = None  # with `ready`
    cause: str | None = None  # of a departure nobody asked for: evicted, expired
