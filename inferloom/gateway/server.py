"""The serving process: a socket, a pool of workers, a catalog, and the way all of it ends."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import msgspec
import uvloop

from inferloom.config.file import ConfigFile
from inferloom.config.schema import Config, ServerConfig
from inferloom.errors import Cancelled, ConfigError
from inferloom.gateway import log
from inferloom.gateway.access import check_binding
from inferloom.gateway.app import build_app
from inferloom.gateway.listening import Listener
from inferloom.gateway.rereading import Rereading
from inferloom.gateway.telemetry import Telemetry, open_telemetry

if TYPE_CHECKING:
    from inferloom.catalog.catalog import Catalog
    from inferloom.gateway.service import Service
    from inferloom.worker.pool import WorkerPool

EXIT_OK, EXIT_USAGE, EXIT_INTERRUPTED = 0, 2, 130
COLLECT_AFTER = 10_000  # new objects; Python's own figure is 700
LAST_BYTES_SECONDS = 2.0  # for error events to reach their clients

OnReady = Callable[["Catalog"], None]


def serve(
    config: Config,
    *,
    on_ready: OnReady | None = None,
    file: ConfigFile | None = None,
    pool: WorkerPool | None = None,
) -> int:
    """Serve until a signal: the exit code. To be called from the main thread (workers die with it).

    `on_ready` is called in the event loop once connections are accepted; models load after it. A port of 0
    becomes the one that was given, in `config` too. `file`: where the configuration came from, to be read again. `pool`: of
    `config`, launched by who had the time for it.
    """
    try:
        check_binding(config.server)
        telemetry = open_telemetry(config.telemetry)
        sock = bind(config.server)
        started = msgspec.structs.replace(config, server=msgspec.structs.replace(config.server))
    except ConfigError as error:
        return refuse(error)
    config.server.port = sock.getsockname()[1]
    log.configure(config.server.effective_log_level, access_log=config.server.access_log)
    try:
        with sock, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(
                _serve(config, sock, on_ready, telemetry, file=file, started=started, pool=pool)
            )
    except ConfigError as error:
        return refuse(error)


def refuse(error: ConfigError) -> int:
    """Say in one sentence why there is no server; the exit code."""
    print(f"error: {error.message}", file=sys.stderr)
    return EXIT_USAGE


def bind(server: ServerConfig) -> socket.socket:
    """A listening socket. Raises `ConfigError` in one sentence where that cannot be."""
    try:
        found = socket.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError(f"the host {server.host!r} cannot be resolved: {error.strerror}") from None
    family, kind, protocol, _, address = found[0]
    sock = socket.socket(family, kind, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
        sock.listen(4096)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port {server.port} on {server.host} is in use: "
                "choose another with --port, or end the program that listens there"
            ) from None
        raise ConfigError(
            f"cannot listen on {server.host}, port {server.port}: {(error.strerror or str(error)).lower()}"
        ) from None
    return sock


async def _serve(
    config: Config,
    sock: socket.socket,
    on_ready: OnReady | None,
    telemetry: Telemetry | None,
    *,
    file: ConfigFile | None,
    started: Config,
    pool: WorkerPool | None,
) -> int:
    from inferloom.catalog.catalog import Catalog
    from inferloom.worker.pool import WorkerPool

    pool = WorkerPool.for_config(config) if pool is None else pool
    catalog = Catalog(config, pool)
    ending = Ending()
    app = build_app(catalog, config, telemetry=telemetry)
    listener = Listener(app)
    rereading = Rereading(app.state.service, file, started, ending)
    with ending.signals(), rereading.signal():
        listening = asyncio.create_task(listener.serve(sockets=[sock]))
        try:
            await listener.accepting.wait()
            settle_memory()
            if on_ready is not None:
                on_ready(catalog)
            await pool.start()
            if telemetry is not None:
                telemetry.start(app.state.service.metrics)
            await catalog.start()
            rereading.start()
            await ending.wait(ending.first, listening)
            return await end(app.state.service, listener, listening, ending)
        finally:
            listening.cancel()
            rereading.stop()
            await catalog.close()
            await pool.stop()
            if telemetry is not None:
                await telemetry.close()


def settle_memory() -> None:
    """Tell the collector of cycles that what there is now stays, and to look less often at what comes: a request
    makes hundreds of objects and no cycles worth a search after each."""
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, 10, 10)


async def end(service: Service, listener: Listener, listening: asyncio.Task[None], ending: Ending) -> int:
    """Stop listening; drain until all is answered, time is up or a second signal comes; then cut what is left."""
    seconds = service.config.server.drain_timeout_secs
    service.draining = True
    service.events.close()
    listener.stop_listening()
    log.logger.info("stopping: %d requests in progress have %g s to finish", len(service.exchanges), seconds)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await ending.wait(ending.second, listening)
    if not listening.done():
        service.exchanges.abort_all(Cancelled("The server is shutting down; try again in a moment."))
        await asyncio.wait([listening], timeout=LAST_BYTES_SECONDS)
        listener.force_exit = True
    await service.catalog.drain(0)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LAST_BYTES_SECONDS):
            await listening
    return EXIT_INTERRUPTED if ending.second.is_set() else EXIT_OK


class Ending:
    """The first and the second SIGINT or SIGTERM."""

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()

    def signalled(self) -> None:
        (self.second if self.first.is_set() else self.first).set()

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.signalled)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    async def wait(self, event: asyncio.Event, task: asyncio.Task[None]) -> None:
        """Until the event is set or the task is done, whichever is first."""
        waiting = asyncio.create_task(event.wait())
        try:
            await asyncio.wait([waiting, task], return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
