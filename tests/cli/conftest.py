from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import uvicorn
from cli.standin import StandIn

from inferloom.cli.transport import AppTransport, HttpTransport, Transport

Open = Callable[[StandIn], Transport]


def served(standin: StandIn, stack: ExitStack) -> HttpTransport:
    """`standin` behind a real socket, for as long as `stack` lasts."""
    server = uvicorn.Server(uvicorn.Config(standin.app, port=0, log_level="error"))
    listening = threading.Event()
    startup = server.startup

    async def start(sockets: list[object] | None = None) -> None:
        await startup(sockets)
        listening.set()

    server.startup = start
    thread = threading.Thread(target=server.run)
    thread.start()

    def stop() -> None:
        standin.closing = server.should_exit = True
        thread.join()

    stack.callback(stop)
    assert listening.wait(20)
    port = server.servers[0].sockets[0].getsockname()[1]
    return HttpTransport(f"http://127.0.0.1:{port}", api_key="sk-test")


@pytest.fixture(params=["over a socket", "in process"])
def transport(request: pytest.FixtureRequest) -> Iterator[Open]:
    """Opens a transport to a stand-in: every test that uses it runs over both."""
    with ExitStack() as stack:

        def open_transport(standin: StandIn) -> Transport:
            if request.param == "over a socket":
                return served(standin, stack)
            runner = stack.enter_context(asyncio.Runner())
            return AppTransport(standin.app, runner, api_key="sk-test")

        yield open_transport
