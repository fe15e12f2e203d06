"""A catalog whose runners are scripted: what the gateway's own tests drive it with."""

from __future__ import annotations

import array
import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import msgspec

from inferloom.catalog.lifecycle import ModelBytes
from inferloom.catalog.planning import Plan
from inferloom.config.schema import Config, DriverConfig, ModelConfig
from inferloom.errors import Conflict, InferloomError, ModelNotFound, SourceNotFound
from inferloom.runners.base import ModelRunner, RunHandle, SessionRebuildCause
from inferloom.types import (
    EmbedBatch,
    EmbedResult,
    ExecuteBatch,
    ModelCard,
    RuntimeKind,
    TokenChunk,
    TransportKind,
    Usage,
)

WORDS = ("Paris", " is", " the", " capital", " of", " France", ".")
DIMENSIONS = 4


def answer(batch: ExecuteBatch) -> list[TokenChunk]:
    """The same sentence for every choice, cut at `max_tokens`."""
    limit = min(batch.max_tokens if batch.max_tokens is not None else len(WORDS), len(WORDS))
    chunks = [
        TokenChunk(index=index, text=WORDS[word], token_ids=(word,))
        for word in range(limit)
        for index in range(batch.n)
    ]
    reason = "stop" if limit == len(WORDS) else "length"
    chunks += [TokenChunk(index=index, finish_reason=reason) for index in range(batch.n)]
    chunks[-1].usage = Usage(prompt_tokens=5, completion_tokens=limit * batch.n, cached_tokens=2)
    return chunks


class ScriptedRunner(ModelRunner):
    """Feeds `script(batch)` into the handle; with `hold`, only the first chunk, until it is released."""

    def __init__(self, card: ModelCard) -> None:
        self._card = card
        self.script: Callable[[ExecuteBatch], Iterable[TokenChunk]] = answer
        self.batches: list[ExecuteBatch | EmbedBatch] = []
        self.hold_after: int | None = None
        self.error: InferloomError | None = None  # ends the run after the held chunks
        self.cancelled = asyncio.Event()
        self.started = asyncio.Event()
        self.handles: list[RunHandle] = []

    async def execute(self, batch: ExecuteBatch) -> RunHandle:
        self.batches.append(batch)
        handle = RunHandle(on_cancel=self.cancelled.set)
        self.handles.append(handle)
        chunks = list(self.script(batch))
        kept = chunks if self.hold_after is None else chunks[: self.hold_after]
        for chunk in kept:
            handle.feed(chunk)
        if self.error is not None:
            handle.fail(self.error)
        elif self.hold_after is None:
            handle.finish()
        self.started.set()
        return handle

    async def embed(self, batch: EmbedBatch) -> EmbedResult:
        self.batches.append(batch)
        values = array.array("f")
        for index, _ in enumerate(batch.inputs):
            values.extend([0.5, -0.5, 0.5, 0.5 if index % 2 else -0.5])
        return EmbedResult(data=values.tobytes(), dimensions=DIMENSIONS, prompt_tokens=3 * len(batch.inputs))

    async def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [*([1] if add_special_tokens else []), *text.encode()]

    async def detokenize(self, tokens: list[int], *, skip_special_tokens: bool = True) -> str:
        return bytes(token % 256 for token in tokens).decode("latin-1")

    def card(self) -> ModelCard:
        return self._card

    async def rebuild_session(self, cause: SessionRebuildCause) -> None: ...

    def runtime_kind(self) -> RuntimeKind:
        return RuntimeKind.DUMMY

    def transport_kind(self) -> TransportKind:
        return TransportKind.IN_PROCESS


@dataclass
class StandInStatus:
    word: str = "loaded"
    state: str = "ready"
    stage: str | None = None
    fraction: float | None = None
    reason: str | None = None
    since: float = 0.0
    detail: str = ""
    bytes: ModelBytes | None = None
    retry_at: float | None = None
    card: ModelCard | None = None
    pid: int | None = None
    leases: int = 0
    waiting: int = 0
    yielding: bool = False
    expected_secs: float | None = None
    expires_at: float | None = None
    keep_alive: float = math.inf
    pinned: bool = False
    priority: int = 0
    group: str | None = None
    shares: tuple[str, ...] = ()
    replacing: bool = False
    load_seconds: float | None = None
    stages: dict[str, float] = field(default_factory=dict)
    loads: int = 0
    evictions: int = 0
    freed_bytes: int | None = None


@dataclass
class StandInEntry:
    id: str
    config: ModelConfig
    runner: ScriptedRunner
    aliases: tuple[str, ...] = ()
    created: int = 1_700_000_000
    status: StandInStatus = field(default_factory=StandInStatus)
    load_error: InferloomError | None = None
    gate: asyncio.Event | None = None  # a load that waits for it

    def __post_init__(self) -> None:
        self.status.card = self.runner.card()


class StandInCatalog:
    """The catalog's surface over `StandInEntry`s."""

    def __init__(self, entries: list[StandInEntry]) -> None:
        self._entries = entries
        self.leases = 0
        self.deadlines: list[float | None] = []
        self.forced: list[bool] = []
        self.drained: list[float | None] = []
        self.kept: list[float | None] = []

    def entries(self) -> list[StandInEntry]:
        return list(self._entries)

    @property
    def default(self) -> StandInEntry:
        return self._entries[0]

    def resolve(self, name: str | None) -> StandInEntry:
        if name in (None, "", "default"):
            return self.default
        for entry in self._entries:
            if name in (entry.id, *entry.aliases, entry.config.weights):
                return entry
        raise ModelNotFound(f"model not found: {name}", param="model")

    def status(self, name: str) -> StandInStatus:
        return self.resolve(name).status

    @asynccontextmanager
    async def lease(
        self, name: str, *, deadline: float | None = None, keep_alive: float | None = None
    ) -> AsyncIterator[ModelRunner]:
        entry = self.resolve(name)
        self.deadlines.append(deadline)
        self.kept.append(keep_alive)
        await self._ensure(entry)
        self.leases += 1
        try:
            yield entry.runner
        finally:
            self.leases -= 1

    async def _ensure(self, entry: StandInEntry) -> None:
        if entry.gate is not None:
            await entry.gate.wait()
        if entry.load_error is not None:
            gone = isinstance(entry.load_error, SourceNotFound)
            entry.status.word = "no_loader_config" if gone else "internal_error"
            entry.status.state = "failed"
            raise entry.load_error
        entry.status.word, entry.status.state = "loaded", "ready"

    async def load(self, name: str, *, keep_alive: float | None = None) -> None:
        self.kept.append(keep_alive)
        await self._ensure(self.resolve(name))

    reload = load

    def pin(self, name: str, pinned: bool) -> None:
        self.resolve(name).status.pinned = pinned

    def set_default(self, name: str) -> StandInEntry:
        self._entries.sort(key=lambda entry: entry is not self.resolve(name))
        return self.default

    @property
    def config(self) -> Config:
        return Config(model=[entry.config for entry in self._entries])

    def add(self, model: ModelConfig, *, load: bool = False) -> StandInEntry:
        entry = StandInEntry(model.name, model, ScriptedRunner(chat_card()), aliases=tuple(model.aliases))
        self._entries.append(entry)
        return entry

    async def change(self, name: str, **keys: object) -> None:
        entry = self.resolve(name)
        entry.config = msgspec.structs.replace(entry.config, **keys)
        entry.aliases = tuple(entry.config.aliases)

    async def remove(self, name: str, *, force: bool = False) -> StandInEntry:
        entry = self.resolve(name)
        if entry is self.default:
            raise Conflict("it is the default model")
        self._entries.remove(entry)
        return entry

    async def plan(self, name: str) -> Plan:
        return Plan(model=name, loaded=True, fits=True, device="cpu", seconds=0.0)

    async def unload(self, name: str, *, force: bool = False, drain_secs: float | None = None) -> None:
        self.forced.append(force)
        self.drained.append(drain_secs)
        status = self.resolve(name).status
        status.word, status.state = "unloaded", "unloaded"

    async def drain(self, timeout: float) -> None: ...

    def observe(self, observer: object) -> None:
        """Nothing here changes by itself."""

    def observe_progress(self, observer: object) -> None: ...


def chat_card(**changes: object) -> ModelCard:
    return ModelCard(
        **{
            "kind": "generate",
            "architecture": "dummy",
            "parameters": 7,
            "format": "dummy",
            "dtype": "none",
            "max_model_len": 2048,
            "vocab_size": 256,
            "has_chat_template": True,
        }
        | changes
    )


def embed_card() -> ModelCard:
    return chat_card(kind="embed", dimensions=DIMENSIONS, has_chat_template=False)


def model(name: str, **changes: object) -> ModelConfig:
    return ModelConfig(**{"name": name, "driver": DriverConfig(type="dummy")} | changes)


def two_models() -> StandInCatalog:
    """`talker`, the default, with an alias and a source; and `vectors`, which makes embeddings."""
    talker = model("talker", source="house/talker", aliases=["chatty"], system_prompt=None)
    return StandInCatalog(
        [
            StandInEntry("talker", talker, ScriptedRunner(chat_card()), aliases=("chatty",)),
            StandInEntry("vectors", model("vectors"), ScriptedRunner(embed_card())),
        ]
    )


def config(catalog: StandInCatalog, **server: object) -> Config:
    made = Config(model=[entry.config for entry in catalog.entries()])
    for key, value in server.items():
        assert hasattr(made.server, key)
        setattr(made.server, key, value)
    return made


async def until(condition: Callable[[], bool], *, seconds: float = 5.0) -> None:
    """Wait for a condition; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.002)
