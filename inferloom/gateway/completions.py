"""`POST /v1/completions`."""

from __future__ import annotations

from inferloom.gateway.call import Call
from inferloom.gateway.chat import answer_headers, usage_wanted
from inferloom.gateway.exchange import Exchange
from inferloom.gateway.forms import CompletionForm
from inferloom.gateway.generation import Generation
from inferloom.gateway.service import Service
from inferloom.gateway.wire import completions as wire
from inferloom.gateway.wire.completions import DEFAULT_MAX_TOKENS, CompletionRequest
from inferloom.gateway.wire.decoding import BodyDecoder
from inferloom.gateway.wire.keeping import keep_alive
from inferloom.gateway.wire.patience import deadline
from inferloom.gateway.wire.sampling import sampling, stops
from inferloom.types import ExecuteBatch

_requests = BodyDecoder(CompletionRequest)


async def complete(service: Service, call: Call) -> None:
    request, ignored = _requests.decode(await call.body())
    entry, named = service.resolve(call, request.model)
    wire.refuse_unsupported(request)
    keep, until = keep_alive(request.keep_alive), deadline(request.timeout_secs)
    streaming = bool(request.stream)
    include_usage = usage_wanted(request.stream_options, streaming=streaming)
    prompts = wire.prompts(request)
    n = request.n or 1
    form = CompletionForm(
        model=named, choices=n * len(prompts), include_usage=include_usage, logprobs=request.logprobs
    )
    texts, ids = stops(request)
    chosen = sampling(request)

    def batches(until: float | None) -> list[ExecuteBatch]:
        return [
            ExecuteBatch(
                request_id=form.id if len(prompts) == 1 else f"{form.id}-{index}",
                model=entry.id,
                text=prompt if isinstance(prompt, str) else None,
                token_ids=prompt if isinstance(prompt, list) else None,
                sampling=chosen,
                n=n,
                max_tokens=DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens,
                stop=texts,
                stop_token_ids=ids,
                ignore_eos=bool(request.ignore_eos),
                echo=bool(request.echo),
                logprobs=request.logprobs,
                deadline=until,
                user=request.user,
                stream=streaming,
            )
            for index, prompt in enumerate(prompts)
        ]

    exchange = Exchange(call, streaming=streaming, headers=answer_headers(ignored, streaming=streaming))
    generation = Generation(
        service, exchange, entry=entry, form=form, batches=batches, keep_alive=keep, deadline=until
    )
    await generation.run()
