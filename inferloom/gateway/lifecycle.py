"""`POST /v1/models/{load,unload,reload,status,re_isq}`: declared names only; a source never comes from a request."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TYPE_CHECKING

from msgspec import UNSET

from inferloom.config.quantization import IN_SITU, scheme
from inferloom.errors import ConfigError, InferloomError, InvalidRequest, ModelNotFound, RequestTimeout
from inferloom.gateway.call import Call, encode
from inferloom.gateway.service import Service
from inferloom.gateway.wire.decoding import BodyDecoder, header_value
from inferloom.gateway.wire.errors import error_body
from inferloom.gateway.wire.models import LifecycleAnswer, LifecycleRequest, RequantiseRequest

if TYPE_CHECKING:
    from inferloom.catalog.catalog import Entry

_requests = BodyDecoder(LifecycleRequest)
_requantisations = BodyDecoder(RequantiseRequest)


async def load(service: Service, call: Call) -> None:
    await _change(service, call, "load")


async def reload(service: Service, call: Call) -> None:
    await _change(service, call, "reload")


async def unload(service: Service, call: Call) -> None:
    await _change(service, call, "unload")


async def status(service: Service, call: Call) -> None:
    await _change(service, call, "status")


async def re_isq(service: Service, call: Call) -> None:
    """Serve a declared model's weights in another quantisation. Answers when requests get the new one."""
    request, ignored = _requantisations.decode(await call.body())
    headers = [(b"x-inferloom-ignored", header_value(ignored))] if ignored else []
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
    answer = _answer(service, entry.id)
    answer.quantization = wanted
    await call.json(answer, headers=headers)


async def _change(service: Service, call: Call, verb: str) -> None:
    """Do what the verb says to the model of the body, and answer with what became of it."""
    request, ignored = _requests.decode(await call.body())
    headers = [(b"x-inferloom-ignored", header_value(ignored))] if ignored else []
    asked = request.model_id
    try:
        entry, _ = service.resolve(call, asked)
        await _act(service, entry, verb, force=bool(request.force))
    except ModelNotFound as error:
        error.param = "model_id"
        answer = LifecycleAnswer(model_id=asked, status="not_found", error=error_body(error))
        await call.error(error, body=encode(answer))
        return
    except InferloomError as error:
        answer = _answer(service, asked)
        answer.error = error_body(error)
        if answer.status not in ("no_loader_config", "unloaded", "reloading"):
            answer.status = "internal_error"
        await call.error(error, body=encode(answer))
        return
    await call.json(_answer(service, asked), headers=headers)


async def _act(service: Service, entry: Entry, verb: str, *, force: bool) -> None:
    catalog = service.catalog
    if verb == "load":
        await _in_time(service, catalog.load(entry.id))
    elif verb == "reload":
        await _in_time(service, catalog.reload(entry.id))
    elif verb == "unload":
        await catalog.unload(entry.id, force=force)


async def _in_time(service: Service, loading: Awaitable[object]) -> None:
    seconds = service.config.server.load_timeout_secs
    try:
        async with asyncio.timeout(seconds or None):
            await loading
    except TimeoutError:
        raise RequestTimeout(f"The model did not load within {seconds:g} s (load_timeout_secs).") from None


def _answer(service: Service, asked: str) -> LifecycleAnswer:
    now = service.catalog.status(asked)
    answer = LifecycleAnswer(model_id=asked, status=now.word, state=str(now.state))
    if now.stage is not None:
        answer.stage, answer.fraction = now.stage, now.fraction
    else:
        answer.stage = answer.fraction = UNSET
    return answer
