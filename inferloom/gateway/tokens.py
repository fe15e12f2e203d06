"""`POST /tokenize` and `POST /detokenize`."""

from __future__ import annotations

from inferloom.gateway.call import Call
from inferloom.gateway.chat import answer_headers
from inferloom.gateway.service import Service
from inferloom.gateway.wire.decoding import BodyDecoder
from inferloom.gateway.wire.keeping import keep_alive
from inferloom.gateway.wire.models import DetokenizeAnswer, DetokenizeRequest, TokenizeAnswer, TokenizeRequest
from inferloom.gateway.wire.patience import deadline

_tokenize = BodyDecoder(TokenizeRequest)
_detokenize = BodyDecoder(DetokenizeRequest)


async def tokenize(service: Service, call: Call) -> None:
    request, ignored = _tokenize.decode(await call.body())
    entry, _ = service.resolve(call, request.model)
    keep, until = keep_alive(request.keep_alive), deadline(request.timeout_secs)
    special = request.add_special_tokens is not False
    async with service.lease(entry, keep_alive=keep, deadline=until) as runner:
        tokens = await runner.tokenize(request.text, add_special_tokens=special)
    await call.json(TokenizeAnswer(tokens), headers=answer_headers(ignored, streaming=False))


async def detokenize(service: Service, call: Call) -> None:
    request, ignored = _detokenize.decode(await call.body())
    entry, _ = service.resolve(call, request.model)
    keep, until = keep_alive(request.keep_alive), deadline(request.timeout_secs)
    skip = request.skip_special_tokens is not False
    async with service.lease(entry, keep_alive=keep, deadline=until) as runner:
        text = await runner.detokenize(request.tokens, skip_special_tokens=skip)
    await call.json(DetokenizeAnswer(text), headers=answer_headers(ignored, streaming=False))
