"""`POST /v1/models/{load,unload,reload,status,pin,plan,re_isq}`, `PUT /v1/models/default`: declared names only; a source
never comes from these requests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import msgspec
from msgspec import UNSET

from inferloom.config.quantization import IN_SITU, scheme
from inferloom.errors import ConfigError, InferloomError, InvalidRequest, ModelNotFound, RequestTimeout
from inferloom.gateway.call import CLIENT_LEFT, Call, encode
from inferloom.gateway.exchange import ClientLeft
from inferloom.gateway.service import Service
from inferloom.gateway.wire.decoding import BodyDecoder, header_value
from inferloom.gateway.wire.errors import error_body
from inferloom.gateway.wire.keeping import keep_alive
from inferloom.gateway.wire.models import (
    DefaultAnswer,
    DefaultRequest,
    EvictedModel,
    LifecycleAnswer,
    LifecycleRequest,
    LoadRequest,
    PinRequest,
    PlanAnswer,
    PlannedBytes,
    RequantiseRequest,
    UnloadRequest,
)

if TYPE_CHECKING:
    from inferloom.catalog.catalog import Entry

_requests = BodyDecoder(LifecycleRequest)
_loads = BodyDecoder(LoadRequest)
_unloads = BodyDecoder(UnloadRequest)
_pins = BodyDecoder(PinRequest)
_defaults = BodyDecoder(DefaultRequest)
_requantisations = BodyDecoder(RequantiseRequest)

IN_MEMORY = ("ready", "draining", "unloading")


async def load(service: Service, call: Call) -> None:
    await _bring_in(service, call, service.catalog.load)


async def reload(service: Service, call: Call) -> None:
    await _bring_in(service, call, service.catalog.reload)


async def _bring_in(service: Service, call: Call, bring: Callable[..., Awaitable[object]]) -> None:
    request, ignored = _loads.decode(await call.body())

    async def act(entry: Entry) -> LifecycleAnswer:
        keep = keep_alive(request.keep_alive)
        await _in_time(service, call, request.timeout_secs, bring(entry.id, keep_alive=keep))
        return told(service, request.model_id)

    await _answer(service, call, request.model_id, ignored, act)


async def unload(service: Service, call: Call) -> None:
    """Answers when the process is gone, with the bytes it took."""
    request, ignored = _unloads.decode(await call.body())

    async def act(entry: Entry) -> LifecycleAnswer:
        before = service.catalog.status(entry.id)
        await service.catalog.unload(entry.id, force=bool(request.force), drain_secs=request.timeout_secs)
        answer = told(service, request.model_id)
        if str(before.state) in IN_MEMORY:
            freed = service.catalog.status(entry.id).freed_bytes
            answer.freed_bytes = UNSET if freed is None else freed
        else:
            answer.freed_bytes = 0
        return answer

    await _answer(service, call, request.model_id, ignored, act)


async def status(service: Service, call: Call) -> None:
    request, ignored = _requests.decode(await call.body())

    async def act(entry: Entry) -> LifecycleAnswer:
        return told(service, request.model_id)

    await _answer(service, call, request.model_id, ignored, act)


async def pin(service: Service, call: Call) -> None:
    """Keep a model in memory once it is there, or let it go again. It is not loaded for that."""
    request, ignored = _pins.decode(await call.body())

    async def act(entry: Entry) -> LifecycleAnswer:
        service.catalog.pin(entry.id, request.pin)
        answer = told(service, request.model_id)
        answer.pinned = request.pin
        return answer

    await _answer(service, call, request.model_id, ignored, act)


async def plan(service: Service, call: Call) -> None:
    """What a load would do. Nothing is changed."""
    request, ignored = _requests.decode(await call.body())

    async def act(entry: Entry) -> PlanAnswer:
        planned = await service.catalog.plan(entry.id)
        needs = planned.needs
        return PlanAnswer(
            model_id=request.model_id,
            loaded=planned.loaded,
            fits=planned.fits,
            device=planned.device,
            evicts=_evicted(service, planned.evicts),
            bytes=None
            if needs is None
            else PlannedBytes(weights=needs.weights, kv=needs.kv, workspace=needs.workspace),
            free_bytes=planned.free,
            waits=planned.waits,
            expected_secs=None if planned.seconds is None else round(planned.seconds, 3),
            reason=planned.reason,
        )

    await _answer(service, call, request.model_id, ignored, act)


def _evicted(service: Service, names: tuple[str, ...]) -> list[EvictedModel]:
    """Names of one worker go together; its bytes are told once, with the first of them."""
    counted: set[str] = set()
    found = []
    for name in names:
        status = service.catalog.status(name)
        held = 0 if status.bytes is None or name in counted else status.bytes.estimate
        counted.update(status.shares)
        found.append(EvictedModel(model_id=name, bytes=held))
    return found


async def set_default(service: Service, call: Call) -> None:
    """The model of requests that name none; loaded or not, and it is not loaded for that."""
    request, ignored = _defaults.decode(await call.body())

    async def act(entry: Entry) -> DefaultAnswer:
        chosen = service.catalog.set_default(entry.id)
        return DefaultAnswer(
            model_id=request.model_id, default=chosen.id, status=service.catalog.status(chosen.id).word
        )

    await _answer(service, call, request.model_id, ignored, act)


async def re_isq(service: Service, call: Call) -> None:
    """Serve a declared model's weights in another quantisation. Answers when requests get the new one."""
    request, ignored = _requantisations.decode(await call.body())
    named = [name for name in (request.quantization, request.ggml_type, request.isq_type) if name is not None]
    if len(named) != 1:
        raise InvalidRequest(
            "name the quantization once: `quantization` (or `ggml_type`, `isq_type`)", param="quantization"
        )
    try:
        wanted = scheme(named[0], where="re_isq")
    except ConfigError as error:
        raise InvalidRequest(error.message, param="quantization") from None
    if wanted not in IN_SITU:
        raise InvalidRequest(
            f"re_isq: {wanted} says what a checkpoint is; weights can be served as {', '.join(IN_SITU)}",
            param="quantization",
        )
    entry, _ = service.resolve(call, request.model_id)
    await service.catalog.requantise(entry.id, wanted)
    answer = told(service, entry.id)
    answer.quantization = wanted
    await call.json(answer, headers=ignored_header(ignored))


async def _answer(
    service: Service,
    call: Call,
    asked: str,
    ignored: list[str],
    act: Callable[[Entry], Awaitable[msgspec.Struct]],
) -> None:
    """Have `act` do something to the model of that name, and answer with what it returns or with what went wrong."""
    try:
        entry, _ = service.resolve(call, asked)
        answer = await act(entry)
    except ModelNotFound as error:
        error.param = "model_id"
        missing = LifecycleAnswer(model_id=asked, status="not_found", error=error_body(error))
        await call.error(error, body=encode(missing))
        return
    except ClientLeft:
        call.status = CLIENT_LEFT
        return
    except InferloomError as error:
        await call.error(error, body=encode(failed(service, asked, error)))
        return
    await call.json(answer, headers=ignored_header(ignored))


async def _in_time(service: Service, call: Call, own: float | None, loading: Awaitable[object]) -> None:
    """The last one who waits for a load and leaves stops it."""
    seconds = service.config.server.load_timeout_secs if own is None else own
    try:
        async with asyncio.timeout(seconds or None):
            await service.exchanges.hold(call, loading)
    except TimeoutError:
        limit = "load_timeout_secs" if own is None else "timeout_secs"
        raise RequestTimeout(f"The model did not load within {seconds:g} s ({limit}).") from None


def ignored_header(ignored: list[str]) -> list[tuple[bytes, bytes]]:
    return [(b"x-inferloom-ignored", header_value(ignored))] if ignored else []


def told(service: Service, asked: str) -> LifecycleAnswer:
    """How the model is now."""
    now = service.catalog.status(asked)
    answer = LifecycleAnswer(model_id=asked, status=now.word, state=str(now.state))
    if now.stage is not None:
        answer.stage, answer.fraction = now.stage, now.fraction
    return answer


def failed(service: Service, asked: str, error: InferloomError) -> LifecycleAnswer:
    """How the model is, and why what was asked of it was not done: a request that was wrong says nothing of the model."""
    answer = told(service, asked)
    answer.error = error_body(error)
    if error.status >= 500 and answer.status not in ("no_loader_config", "unloaded", "reloading"):
        answer.status = "internal_error"
    return answer
