"""When the configuration's file is read again without anybody asking over HTTP: SIGHUP, and a change of the file."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Coroutine, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from inferloom.config.file import ConfigFile
from inferloom.config.schema import Config

if TYPE_CHECKING:
    from inferloom.gateway.service import Service

logger = logging.getLogger("inferloom.configuration")


class Ended(Protocol):
    """Who is told of a signal that ends the server."""

    def signalled(self) -> None: ...


class Rereading:
    """SIGHUP and the watch over the file. A hangup because the terminal is gone ends the server, as ever."""

    def __init__(self, service: Service, file: ConfigFile | None, started: Config, ending: Ended) -> None:
        self._service = service
        self._ending = ending
        self._tasks: set[asyncio.Task[None]] = set()
        self._on_terminal = _has_terminal()
        if file is not None:
            from inferloom.gateway.configuration import Configuration

            service.configuration = Configuration(service, file, started)

    @contextlib.contextmanager
    def signal(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self._hung_up)
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGHUP)

    def start(self) -> None:
        """Watch the file where that is configured."""
        configuration = self._service.configuration
        if configuration is not None and self._service.config.server.watch_config:
            self._begin(configuration.watch(), "watch the configuration")

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()

    def _hung_up(self) -> None:
        if self._on_terminal and not _has_terminal():
            self._ending.signalled()
        elif self._service.configuration is None:
            logger.warning(
                "SIGHUP: the server was started without a configuration file; nothing is read again"
            )
        else:
            self._begin(self._service.configuration.apply_logged(), "apply the configuration")

    def _begin(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("could not %s", task.get_name(), exc_info=task.exception())


def _has_terminal() -> bool:
    """Whether the standard input is a terminal that somebody sits at: one that is gone has no foreground."""
    try:
        return sys.stdin is not None and os.tcgetpgrp(sys.stdin.fileno()) > 0
    except (OSError, ValueError):
        return False
