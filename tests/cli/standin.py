"""A tiny application that speaks the wire format, so that the client side can be tested by itself."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

WORDS = ("The", " capital", " is", " Paris", ".")


class StandIn:
    """`requests` holds the bodies that arrived; `left` is set when a reader left before the end."""

    def __init__(self, *, endless: bool = False, fails: bool = False, refuses: str | None = None) -> None:
        self.requests: list[dict[str, object]] = []
        self.authorizations: list[str | None] = []
        self.left = False
        self._endless = endless
        self._fails = fails
        self._refuses = refuses  # a field that is unknown to it
        self.app = Starlette(
            routes=[
                Route("/v1/models", self._listing),
                Route("/v1/models/{name:path}", self._card, methods=["GET"]),
                Route("/v1/models/unload", self._unload, methods=["POST"]),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
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
        return JSONResponse(
            {
                "id": name,
                "root": name,
                "status": "loaded",
                "state": "ready",
                "kind": "generate",
                "parameters": 135_000_000,
            }
        )

    async def _unload(self, request: Request) -> Response:
        body = await request.json()
        return JSONResponse({"model_id": body["model_id"], "status": "unloaded"})

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
