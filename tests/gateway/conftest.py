"""A gateway over scripted models, on a real socket in the test's own event loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import httpx
import pytest
from gateway.stand_in import StandInCatalog, config, two_models
from openai import AsyncOpenAI
from starlette.applications import Starlette

from inferloom.catalog.catalog import Catalog
from inferloom.config.schema import Config, DriverConfig, ModelConfig, RuntimeConfig, ServerConfig
from inferloom.gateway.app import build_app
from inferloom.gateway.exchange import Limits
from inferloom.gateway.listening import Listener
from inferloom.gateway.service import Service
from inferloom.worker.pool import LIGHT, WorkerPool


@dataclass
class Gateway:
    """A running gateway and clients for it."""

    app: Starlette
    catalog: StandInCatalog
    service: Service
    port: int
    http: httpx.AsyncClient
    openai: AsyncOpenAI

    @property
    def talker(self):
        return self.catalog.entries()[0].runner

    @property
    def vectors(self):
        return self.catalog.entries()[1].runner


@asynccontextmanager
async def serving(
    catalog: StandInCatalog, *, limits: Limits | None = None, **server: object
) -> AsyncIterator[Gateway]:
    app = build_app(catalog, config(catalog, **server), limits=limits)
    sock = socket.create_server(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    listener = Listener(app)
    task = asyncio.create_task(listener.serve(sockets=[sock]))
    base = f"http://127.0.0.1:{port}"
    try:
        async with httpx.AsyncClient(base_url=base, timeout=10) as http:
            client = AsyncOpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0)
            async with client:
                yield Gateway(app, catalog, app.state.service, port, http, client)
    finally:
        listener.should_exit = True
        listener.force_exit = True
        await task


Serve = Callable[..., Awaitable[Gateway]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Start gateways: `await serve()`, or with a catalog, limits and keys of `[server]`."""
    async with AsyncExitStack() as stack:

        async def start(catalog: StandInCatalog | None = None, **options: object) -> Gateway:
            return await stack.enter_async_context(serving(catalog or two_models(), **options))

        yield start


@pytest.fixture
async def gateway(serve: Serve) -> Gateway:
    return await serve()


@pytest.fixture
async def workers(serve: Serve) -> AsyncIterator[Serve]:
    """Start gateways over real workers of lazy dummies: `await workers(a={…options}, limits=…)`. `budget` is the memory
    budget; `keep_alive` and others are keys of `[server]`."""
    pool = WorkerPool(preload=LIGHT)
    await pool.start()
    catalogs: list[Catalog] = []

    async def start(
        *,
        limits: Limits | None = None,
        server: dict[str, object] | None = None,
        budget: str | None = None,
        **models: dict[str, object],
    ) -> Gateway:
        runtime = RuntimeConfig() if budget is None else RuntimeConfig(memory_budget=budget)
        declared = Config(
            runtime=runtime,
            server=ServerConfig(**(server or {})),
            model=[
                ModelConfig(name=name, lazy=True, driver=DriverConfig(type="dummy", options=options))
                for name, options in models.items()
            ],
        )
        catalogs.append(Catalog(declared, pool))
        return await serve(catalogs[-1], limits=limits, **(server or {}))

    yield start
    for catalog in catalogs:
        await catalog.close()
    await pool.stop()
