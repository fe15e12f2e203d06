"""A runner as one of several names shows it: what belongs to the name is put into each request."""

from __future__ import annotations

from inferloom.runners.base import ModelRunner, RateLimits, RunHandle, SessionRebuildCause
from inferloom.runners.request import with_system_prompt
from inferloom.types import (
    EmbedBatch,
    EmbedResult,
    ExecuteBatch,
    ModelCard,
    RuntimeKind,
    TransportKind,
)


class Presented(ModelRunner):
    """The runner that a lease gives out: `inner` with a system prompt of its own. It is not loaded and not closed: it
    holds nothing."""

    def __init__(self, inner: ModelRunner, *, system_prompt: str) -> None:
        self.inner = inner
        self._system_prompt = system_prompt

    async def execute(self, batch: ExecuteBatch) -> RunHandle:
        return await self.inner.execute(with_system_prompt(batch, self._system_prompt))

    async def rebuild_session(self, cause: SessionRebuildCause) -> None:
        await self.inner.rebuild_session(cause)

    def runtime_kind(self) -> RuntimeKind:
        return self.inner.runtime_kind()

    def transport_kind(self) -> TransportKind:
        return self.inner.transport_kind()

    async def embed(self, batch: EmbedBatch) -> EmbedResult:
        return await self.inner.embed(batch)

    async def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return await self.inner.tokenize(text, add_special_tokens=add_special_tokens)

    async def detokenize(self, tokens: list[int], *, skip_special_tokens: bool = True) -> str:
        return await self.inner.detokenize(tokens, skip_special_tokens=skip_special_tokens)

    def card(self) -> ModelCard | None:
        return self.inner.card()

    def gil_pinned(self) -> bool:
        return self.inner.gil_pinned()

    def rate_limits(self) -> RateLimits | None:
        return self.inner.rate_limits()

    def estimate_cost_usd(self, batch: ExecuteBatch) -> float | None:
        return self.inner.estimate_cost_usd(with_system_prompt(batch, self._system_prompt))
