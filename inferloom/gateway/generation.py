"""From a validated request to its answer: a place, a lease, a run, and the answer written whole or as a stream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from inferloom.errors import InferloomError
from inferloom.gateway.call import CLIENT_LEFT, Headers
from inferloom.gateway.exchange import ClientLeft, Exchange
from inferloom.gateway.forms import Form
from inferloom.gateway.gathered import Gathered
from inferloom.gateway.merging import Merged
from inferloom.gateway.service import Service
from inferloom.runners.base import ModelRunner, RunHandle
from inferloom.types import ExecuteBatch, Usage

if TYPE_CHECKING:
    from inferloom.catalog.catalog import Entry

STREAM_HEADERS: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class Generation:
    """One generation: what is asked of which model, and in what form it is answered."""

    def __init__(
        self,
        service: Service,
        exchange: Exchange,
        *,
        entry: Entry,
        form: Form,
        batches: Callable[[float | None], list[ExecuteBatch]],
        keep_alive: float | None = None,
        deadline: float | None = None,
    ) -> None:
        """`keep_alive`: seconds that the request lets the model stay idle after it. `deadline`: time.monotonic() at which its
        answer must be complete."""
        self._keep_alive = keep_alive
        self._deadline = deadline
        self._service = service
        self._exchange = exchange
        self._entry = entry
        self._form = form
        self._batches = batches
        self._first_token = 0.0
        self._usage: Usage | None = None

    async def run(self) -> None:
        """Answer the call, whatever happens; only the server's own cancellation passes through."""
        exchange, service = self._exchange, self._service
        service.exchanges.add(exchange)
        try:
            await self._run()
        except (InferloomError, asyncio.CancelledError) as caught:
            error = exchange.reason(caught)
            if not isinstance(error, InferloomError):
                raise
            await self._fail(error)
        finally:
            exchange.settle()
            service.exchanges.discard(exchange)

    async def _run(self) -> None:
        service, exchange = self._service, self._exchange
        await service.admit(exchange.call, self._entry, deadline=self._deadline)
        try:
            service.refuse_other_kind(self._entry, "generate")
            exchange.waits_for(lambda: service.load_progress(self._entry))
            async with service.lease(
                self._entry, keep_alive=self._keep_alive, deadline=self._deadline
            ) as runner:
                exchange.waits_no_more()
                service.leased(exchange.call)
                service.refuse_other_kind(self._entry, "generate", runner=runner)
                handle = await self._start(runner)
                try:
                    if exchange.streaming:
                        await self._stream(handle)
                    else:
                        await self._answer(handle)
                finally:
                    exchange.settle()
        finally:
            service.admission.leave()

    async def _start(self, runner: ModelRunner) -> RunHandle:
        server, exchange = self._service.config.server, self._exchange
        loop_now = asyncio.get_running_loop().time()
        deadline, exchange.limit = self._service.answer_limit(self._entry, self._deadline)
        if deadline is not None:
            exchange.deadline = loop_now + deadline - time.monotonic()
        if server.first_token_timeout_secs > 0:
            exchange.first_token_deadline = loop_now + server.first_token_timeout_secs
        batches = self._batches(deadline)
        if len(batches) == 1:
            handle = await runner.execute(batches[0])
        else:
            handle = await self._start_all(runner, batches)
        exchange.handle = handle
        if exchange.error is not None:
            handle.cancel()
            raise exchange.error
        return handle

    async def _start_all(self, runner: ModelRunner, batches: list[ExecuteBatch]) -> RunHandle:
        handles: list[RunHandle] = []
        try:
            for batch in batches:
                handles.append(await runner.execute(batch))
        except BaseException:
            for handle in handles:
                handle.cancel()
            raise
        return Merged(handles, n=batches[0].n).handle

    async def _answer(self, handle: RunHandle) -> None:
        exchange = self._exchange
        gathered = Gathered(self._form.choices)
        gathered.add(await handle.take())
        self._note_first_token()
        gathered.add(await handle.take_rest())
        if exchange.error is not None:
            raise exchange.error
        gathered.check()
        exchange.settle()
        self._usage = gathered.usage
        self._count()
        await exchange.call.reply(self._form.answer(gathered), headers=exchange.headers)

    async def _stream(self, handle: RunHandle) -> None:
        exchange, form = self._exchange, self._form
        # an error before the first token keeps its status, unless a long load has begun the stream
        chunks = await handle.take()
        self._note_first_token()
        if not exchange.call.started:
            await exchange.start_stream()
        pending = form.opening()
        try:
            while chunks:
                pending += form.frames(chunks)
                if not handle.finished:
                    await exchange.write(pending)
                    pending = b""
                    exchange.write_directly(handle, form.frames)
                chunks = await handle.take()
            if exchange.error is not None:
                raise exchange.error
            pending += form.closing()
        except (InferloomError, asyncio.CancelledError):
            if pending and exchange.error is None:
                await exchange.write(pending)
            raise
        self._usage = form.usage
        self._count()
        await exchange.finish(pending)

    def _note_first_token(self) -> None:
        self._exchange.first_token_deadline = 0.0
        call = self._exchange.call
        call.first_token = time.perf_counter()
        self._first_token = call.first_token - call.begun

    def _count(self) -> None:
        if self._usage is not None:
            call = self._exchange.call
            call.usage = self._usage
            self._service.metrics.generation(
                model=call.model,
                usage=self._usage,
                first_token=self._first_token,
                seconds=time.perf_counter() - call.begun,
            )

    async def _fail(self, error: InferloomError) -> None:
        exchange = self._exchange
        exchange.settle()
        call = exchange.call
        if isinstance(error, ClientLeft):
            call.status = CLIENT_LEFT
            self._service.metrics.cancelled(call.model)
            await exchange.drop()
        elif not call.started:
            await call.error(error)
        else:
            call.note(error)
            await exchange.finish(self._form.failure(error))
