"""A tiny application that speaks the wire format, so that the client side can be tested by itself."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

WORDS = ("The", " capital", " is", " Paris", ".")


class StandIn:
    """`requests` holds the bodies that arrived; `left` is set when a reader left before the end. `cards` are what is said
    of its two models beside the usual, `plan` is the answer to every plan, `metrics` the text of its counters, and `told`
    what its events are. One that is `older` has neither pin, plan, counters nor events."""

    def __init__(
        self,
        *,
        endless: bool = False,
        fails: bool = False,
        refuses: str | None = None,
        older: bool = False,
        cards: dict[str, dict[str, object]] | None = None,
        plan: dict[str, object] | None = None,
        told: list[tuple[str, dict[str, object]]] | None = None,
        configuration: dict[str, object] | None = None,
    ) -> None:
        self.requests: list[dict[str, object]] = []
        self.authorizations: list[str | None] = []
        self.left = False
        self._endless = endless
        self._fails = fails
        self._refuses = refuses  # a field that is unknown to it
        self.cards = cards or {}
        self.plan = plan or {}
        self.metrics: list[str] = []  # one for each time they are asked for; the last one stays
        self._told = told or []
        self.configuration = (
            configuration  # what it answers to `config plan` and `apply`; None: the file is wrong
        )
        self.closing = False  # set by whoever serves it: streams of events and loads end
        self.loading = threading.Event()
        newer = [
            Route("/v1/models/pin", self._pin, methods=["POST"]),
            Route("/v1/models/plan", self._plan, methods=["POST"]),
            Route("/v1/config/{verb}", self._config, methods=["POST"]),
            Route("/metrics", self._metrics),
            Route("/v1/events", self._happenings),
        ]
        self.app = Starlette(
            routes=[
                Route("/v1/models", self._listing),
                Route("/v1/models/{name:path}", self._card, methods=["GET"]),
                Route("/v1/models/unload", self._unload, methods=["POST"]),
                Route("/v1/models/load", self._load, methods=["POST"]),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                *([] if older else newer),
            ]
        )

    async def _listing(self, request: Request) -> Response:
        self.authorizations.append(request.headers.get("authorization"))
        data = [{"id": "default"}, *({"id": name, "status": "loaded"} for name in ("org/small", "vectors"))]
        return JSONResponse({"object": "list", "data": data})

    async def _card(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in ("org/small", "vectors"):
            error = {"message": f"model not found: {name}", "code": "model_not_found"}
            return JSONResponse({"error": error}, 404)
        card = {"id": name, "root": name, "status": "loaded", "state": "ready", "kind": "generate"}
        return JSONResponse({**card, "parameters": 135_000_000, **self.cards.get(name, {})})

    async def _unload(self, request: Request) -> Response:
        body = await request.json()
        self.requests.append(body)
        return JSONResponse({"model_id": body["model_id"], "status": "unloaded", "freed_bytes": 312_000_000})

    async def _load(self, request: Request) -> Response:
        """Takes as long as the stand-in is there, and its client."""
        self.loading.set()

        async def nothing() -> AsyncIterator[str]:
            while not self.closing and not await request.is_disconnected():
                await asyncio.sleep(0.02)
                yield ""

        return StreamingResponse(nothing(), media_type="application/json")

    async def _pin(self, request: Request) -> Response:
        body = await request.json()
        self.requests.append(body)
        if body["model_id"] == "nope":
            error = {"message": "model not found: nope", "code": "model_not_found"}
            return JSONResponse({"model_id": "nope", "status": "not_found", "error": error}, 404)
        return JSONResponse({"model_id": body["model_id"], "pinned": body["pin"]})

    async def _plan(self, request: Request) -> Response:
        body = await request.json()
        return JSONResponse({"model_id": body["model_id"], **self.plan})

    async def _config(self, request: Request) -> Response:
        if self.configuration is None:
            error = {"message": "config.toml:3: server.port must be an integer", "code": "invalid_config"}
            return JSONResponse({"error": error}, 400)
        self.requests.append({"verb": request.path_params["verb"], **await request.json()})
        return JSONResponse(self.configuration)

    async def _metrics(self, request: Request) -> Response:
        del request
        text = self.metrics.pop(0) if len(self.metrics) > 1 else "".join(self.metrics)
        return Response(text, media_type="text/plain")

    async def _happenings(self, request: Request) -> Response:
        async def events() -> AsyncIterator[str]:
            yield "event: snapshot\ndata: {}\n\n"
            for name, data in self._told:
                yield f"event: {name}\ndata: {json.dumps(data)}\n\n"
            while not self.closing and not await request.is_disconnected():
                yield ": still here\n\n"
                await asyncio.sleep(0.02)

        return StreamingResponse(events(), media_type="text/event-stream")

    async def _chat(self, request: Request) -> Response:
        body = await request.json()
        self.requests.append(body)
        if self._refuses in body:
            return JSONResponse({"error": {"message": f"unknown field {self._refuses}"}}, 422)
        if body["messages"][-1]["content"] == "too long":
            error = {"message": "the prompt is too long", "code": "context_length_exceeded"}
            return JSONResponse({"error": error}, 400)
        return StreamingResponse(self._events(request), media_type="text/event-stream")

    async def _events(self, request: Request) -> AsyncIterator[str]:
        yield ": keep-alive\n\n"
        count = 0
        try:
            while True:
                for word in WORDS:
                    yield f"data: {json.dumps({'choices': [{'delta': {'content': word}}]})}\n\n"
                    count += 1
                    await asyncio.sleep(0)
                if not self._endless:
                    break
        finally:
            self.left = self._endless
        if self._fails:
            yield 'data: {"error": {"message": "the worker died", "code": "worker_died"}}\n\n'
        else:
            yield 'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\n'
            usage = {"prompt_tokens": 7, "completion_tokens": count}
            yield f"data: {json.dumps({'choices': [], 'usage': usage})}\n\n"
        yield "data: [DONE]\n\n"
