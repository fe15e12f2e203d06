"""`POST /v1/chat/completions`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferloom.errors import InvalidRequest
from inferloom.gateway.call import Call, Headers
from inferloom.gateway.exchange import Exchange
from inferloom.gateway.forms import ChatForm
from inferloom.gateway.generation import STREAM_HEADERS, Generation
from inferloom.gateway.service import Service
from inferloom.gateway.wire import chat as wire
from inferloom.gateway.wire.chat import ChatRequest, StreamOptions
from inferloom.gateway.wire.decoding import BodyDecoder, header_value
from inferloom.gateway.wire.keeping import keep_alive
from inferloom.gateway.wire.patience import deadline
from inferloom.gateway.wire.sampling import sampling, stops
from inferloom.types import ExecuteBatch

if TYPE_CHECKING:
    from inferloom.catalog.catalog import Entry

_requests = BodyDecoder(ChatRequest)


async def chat(service: Service, call: Call) -> None:
    request, ignored = _requests.decode(await call.body())
    entry, named = service.resolve(call, request.model)
    wire.refuse_unsupported(request)
    keep, until = keep_alive(request.keep_alive), deadline(request.timeout_secs)
    streaming = bool(request.stream)
    include_usage = usage_wanted(request.stream_options, streaming=streaming)
    if request.top_logprobs is not None and not request.logprobs:
        raise InvalidRequest("`top_logprobs` needs `logprobs: true`.", param="top_logprobs")
    form = ChatForm(
        model=named, choices=request.n or 1, include_usage=include_usage, logprobs=bool(request.logprobs)
    )
    batch = _batch(request, entry, call, form)

    def batches(until: float | None) -> list[ExecuteBatch]:
        batch.deadline = until
        return [batch]

    exchange = Exchange(call, streaming=streaming, headers=answer_headers(ignored, streaming=streaming))
    generation = Generation(
        service, exchange, entry=entry, form=form, batches=batches, keep_alive=keep, deadline=until
    )
    await generation.run()


def _batch(request: ChatRequest, entry: Entry, call: Call, form: ChatForm) -> ExecuteBatch:
    tools, choice = wire.choose_tools(request, wire.tools(request))
    texts, ids = stops(request)
    return ExecuteBatch(
        request_id=form.id,
        model=entry.id,
        messages=wire.messages(request),
        sampling=sampling(request),
        n=form.choices,
        max_tokens=wire.max_tokens(request),
        stop=texts,
        stop_token_ids=ids,
        ignore_eos=bool(request.ignore_eos),
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=request.parallel_tool_calls is not False,
        constraint=wire.constraint(request),
        chat_template_kwargs=request.chat_template_kwargs or {},
        user=request.user,
        stream=bool(request.stream),
    )


def usage_wanted(options: StreamOptions | None, *, streaming: bool) -> bool:
    """Whether the stream ends with its usage. Options without a stream are refused, as OpenAI does."""
    if options is None:
        return False
    if not streaming:
        raise InvalidRequest("`stream_options` needs `stream: true`.", param="stream_options")
    return bool(options.include_usage)


def answer_headers(ignored: list[str], *, streaming: bool) -> Headers:
    headers: Headers = list(STREAM_HEADERS) if streaming else []
    if ignored:
        headers.append((b"x-inferloom-ignored", header_value(ignored)))
    return headers
