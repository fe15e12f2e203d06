"""`POST /v1/embeddings`."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from inferloom.errors import InferloomError, RequestTimeout
from inferloom.gateway.call import CLIENT_LEFT, Call
from inferloom.gateway.chat import answer_headers
from inferloom.gateway.exchange import ClientLeft, Exchange
from inferloom.gateway.forms import new_id
from inferloom.gateway.service import Service
from inferloom.gateway.wire import embeddings as wire
from inferloom.gateway.wire.decoding import BodyDecoder
from inferloom.gateway.wire.embeddings import Embedding, EmbeddingRequest, EmbeddingResponse, EmbeddingUsage
from inferloom.gateway.wire.keeping import keep_alive
from inferloom.gateway.wire.patience import deadline
from inferloom.types import EmbedBatch, EmbedResult, Usage

if TYPE_CHECKING:
    from inferloom.catalog.catalog import Entry

_requests = BodyDecoder(EmbeddingRequest)


async def embed(service: Service, call: Call) -> None:
    request, ignored = _requests.decode(await call.body())
    entry, named = service.resolve(call, request.model)
    keep, until = keep_alive(request.keep_alive), deadline(request.timeout_secs)
    batch = EmbedBatch(
        request_id=new_id("embd-"),
        model=entry.id,
        inputs=wire.inputs(request),
        dimensions=request.dimensions,
        user=request.user,
    )
    exchange = Exchange(call, streaming=False, headers=answer_headers(ignored, streaming=False))
    service.exchanges.add(exchange)
    try:
        result = await _result(service, exchange, entry=entry, batch=batch, keep=keep, until=until)
    except (InferloomError, asyncio.CancelledError) as error:
        reason = exchange.reason(error)
        if isinstance(reason, ClientLeft):
            call.status = CLIENT_LEFT
            service.metrics.cancelled(call.model)
            return
        raise reason from None
    finally:
        exchange.settle()
        service.exchanges.discard(exchange)
    call.usage = Usage(prompt_tokens=result.prompt_tokens)
    service.metrics.embedding(model=entry.id, prompt_tokens=result.prompt_tokens)
    encoding = request.encoding_format or "float"
    answer = EmbeddingResponse(
        data=[
            Embedding(embedding=wire.encode_row(row, encoding), index=index)
            for index, row in enumerate(wire.rows(result))
        ],
        model=named,
        usage=EmbeddingUsage(prompt_tokens=result.prompt_tokens, total_tokens=result.prompt_tokens),
    )
    await call.json(answer, headers=exchange.headers)


async def _result(
    service: Service,
    exchange: Exchange,
    *,
    entry: Entry,
    batch: EmbedBatch,
    keep: float | None,
    until: float | None,
) -> EmbedResult:
    await service.admit(exchange.call, entry, deadline=until)
    try:
        service.refuse_other_kind(entry, "embed")
        async with service.lease(entry, keep_alive=keep, deadline=until) as runner:
            service.leased(exchange.call)
            service.refuse_other_kind(entry, "embed", runner=runner)
            batch.deadline, limit = service.answer_limit(entry, until)
            if batch.deadline is None:
                return await runner.embed(batch)
            try:
                async with asyncio.timeout(batch.deadline - time.monotonic()):
                    return await runner.embed(batch)
            except TimeoutError:
                raise RequestTimeout(f"The embeddings took longer than {limit} allows.") from None
    finally:
        service.admission.leave()
