"""The ASGI application: routes over a catalog, and around them who may ask, what is counted and what is logged."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.routing import BaseRoute, Route

from inferloom.config.schema import Config
from inferloom.errors import InferloomError, MethodNotAllowed, NotFound
from inferloom.gateway import (
    changes,
    completions,
    configuration,
    embeddings,
    events,
    health,
    lifecycle,
    models,
    openapi,
    tokens,
)
from inferloom.gateway.access import Access
from inferloom.gateway.call import CLIENT_LEFT, ASGIApp, Call, ClientGone, Receive, Scope, Send
from inferloom.gateway.chat import chat
from inferloom.gateway.exchange import Limits
from inferloom.gateway.log import access
from inferloom.gateway.service import Service
from inferloom.gateway.telemetry import Telemetry

if TYPE_CHECKING:
    from inferloom.catalog.catalog import Catalog

Handler = Callable[[Service, Call], Awaitable[None]]

HANDLERS: list[tuple[str, str, Handler]] = [
    ("POST", "/v1/chat/completions", chat),
    ("POST", "/v1/completions", completions.complete),
    ("POST", "/v1/embeddings", embeddings.embed),
    ("GET", "/v1/models", models.list_models),
    ("POST", "/v1/models/load", lifecycle.load),
    ("POST", "/v1/models/unload", lifecycle.unload),
    ("POST", "/v1/models/reload", lifecycle.reload),
    ("POST", "/v1/models/status", lifecycle.status),
    ("POST", "/v1/models/pin", lifecycle.pin),
    ("POST", "/v1/models/plan", lifecycle.plan),
    ("PUT", "/v1/models/default", lifecycle.set_default),
    ("POST", "/v1/models/re_isq", lifecycle.re_isq),
    ("POST", "/re_isq", lifecycle.re_isq),
    ("GET", "/v1/models/{model_id:path}", models.show_model),
    ("POST", "/v1/models", changes.add),
    ("PATCH", "/v1/models/{model_id:path}", changes.change),
    ("DELETE", "/v1/models/{model_id:path}", changes.remove),
    ("GET", "/v1/events", events.watch),
    ("POST", "/v1/config/plan", configuration.plan),
    ("POST", "/v1/config/apply", configuration.apply),
    ("POST", "/tokenize", tokens.tokenize),
    ("POST", "/detokenize", tokens.detokenize),
    ("GET", "/health", health.health),
    ("GET", "/ready", health.ready),
    ("GET", "/metrics", health.metrics),
    ("GET", "/openapi.json", openapi.show),
]


def build_app(
    catalog: Catalog, config: Config, *, limits: Limits | None = None, telemetry: Telemetry | None = None
) -> Starlette:
    """The gateway over a catalog, for any ASGI host. `app.state.service` is what its endpoints share.

    Starting and closing the catalog and the telemetry is the caller's business.
    """
    access = Access.from_config(config.server)
    service = Service(catalog, config, limits=limits or Limits(), access=access, telemetry=telemetry)
    endpoints = {(method, path): Endpoint(service, handler, name=path) for method, path, handler in HANDLERS}
    routes: list[BaseRoute] = [
        Route(path, endpoint, methods=[method]) for (method, path), endpoint in endpoints.items()
    ]
    middleware = [Middleware(Edge, service=service, access=access, direct=endpoints)]
    if config.server.cors_origins:
        middleware.insert(
            0,
            Middleware(
                CORSMiddleware,
                allow_origins=config.server.cors_origins,
                allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
                allow_headers=["*"],
                expose_headers=["x-request-id", "x-inferloom-ignored", "retry-after"],
            ),
        )
    app = Starlette(routes=routes, middleware=middleware)
    app.add_exception_handler(HTTPException, http_error)  # type: ignore[arg-type]
    app.router.redirect_slashes = False
    app.state.service = service
    return app


class Endpoint:
    """A handler as an ASGI application: errors become replies here, once."""

    def __init__(self, service: Service, handler: Handler, *, name: str) -> None:
        self._service = service
        self._handler = handler
        self._name = name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call: Call = scope["inferloom.call"]
        call.endpoint = self._name
        await answer(call, self._handler(self._service, call))


async def answer(call: Call, handling: Awaitable[None]) -> None:
    """Wait for a handler; what it raises becomes the reply."""
    try:
        await handling
    except ClientGone:
        call.status = CLIENT_LEFT
    except InferloomError as error:
        await _reply_or_raise(call, error)
    except Exception as error:
        await _reply_or_raise(call, error)


async def _reply_or_raise(call: Call, error: Exception) -> None:
    if call.started:
        call.note(error)
        raise error
    await call.error(error)


async def http_error(request: Request, exception: Exception) -> ASGIApp:
    """Our envelope for what the router refuses: unknown paths and methods."""
    assert isinstance(exception, HTTPException)
    path = request.url.path[:200]
    error: InferloomError
    if exception.status_code == 405:
        allowed = (exception.headers or {}).get("Allow", "")
        error = MethodNotAllowed(f"{request.method} does not work on {path}; {allowed} does.")
        headers = [(b"allow", allowed.encode("ascii"))]
    else:
        error = NotFound(f"There is nothing at {path}; /openapi.json lists what there is.")
        headers = []

    async def reply(scope: Scope, receive: Receive, send: Send) -> None:
        await scope["inferloom.call"].error(error, headers=headers)

    return reply


class Edge:
    """Around every request: its call, who may ask, what is counted, and the access log."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        service: Service,
        access: Access,
        direct: Mapping[tuple[str, str], ASGIApp],
    ) -> None:
        """`direct`: endpoints by method and path. What is found there need not ask the router of `app`."""
        self._app = app
        self._direct = direct
        self._service = service
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        call = scope["inferloom.call"] = Call(scope, receive, send)
        metrics = self._service.metrics
        metrics.in_flight += 1
        try:
            peer = scope.get("client")
            refusal = self._access.refusal(
                path=scope["path"], peer=peer[0] if peer else None, headers=scope["headers"]
            )
            if refusal is not None:
                await call.error(refusal)
            else:
                app = self._direct.get((scope["method"], scope["path"]), self._app)
                await app(scope, receive, send)
        finally:
            metrics.in_flight -= 1
            metrics.request(
                endpoint=call.endpoint,
                status=call.status,
                model=call.model,
                seconds=call.seconds,
                error=call.error_code,
            )
            if self._service.telemetry is not None:
                self._service.telemetry.answered(call)
            if self._service.config.server.access_log:
                _log_access(call)
            del scope["inferloom.call"]  # they refer to each other, and nobody asks for it any more


def _log_access(call: Call) -> None:
    access.info(
        "request",
        extra={
            "request_id": call.request_id.decode("ascii"),
            "model": call.model,
            "method": call.scope["method"],
            "path": call.scope["path"],
            "status": call.status,
            "seconds": round(call.seconds, 6),
        },
    )
