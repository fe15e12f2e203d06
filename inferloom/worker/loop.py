"""A worker's message loop: read what has come, do one step, write what it brought."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from inferloom.worker.channel import Channel
from inferloom.worker.hosts import Host
from inferloom.worker.messages.replies import FromWorker, Stats
from inferloom.worker.messages.requests import (
    Cancel,
    Embed,
    Flush,
    Generate,
    GetStats,
    Resize,
    Spill,
    ToWorker,
)

STATS_SECS = 1.0  # between two unasked reports while there is work


class Stopped(Exception):
    """The gateway asked the process to end."""


def run(channel: Channel, host: Host, *, check: Callable[[], None], check_secs: float) -> None:
    """Serve until the gateway says stop (`Stopped`), is gone (`EOFError`), or `check` raises.

    `check` is called before every wait and step, and at least every `check_secs`. Cancellations that have arrived
    take effect before the next step, so a client that leaves stops its generation within one.
    """
    reported = time.monotonic()
    wait: float | None = check_secs
    replies: list[FromWorker] = []
    while True:
        check()
        messages = channel.receive(wait=wait)
        for (
            reply
        ) in replies:  # as late as can be: what writes them should meet the next step, not its preparation
            channel.post(reply)
        for message in messages:
            take(message, channel=channel, host=host)
        if not host.has_work:
            wait, replies = check_secs, []
            continue
        replies = host.step()
        wait = 0.0 if replies else host.pause
        now = time.monotonic()
        if now - reported > STATS_SECS or not host.has_work:
            reported = now
            channel.post(host.stats())


def take(message: ToWorker, *, channel: Channel, host: Host) -> None:
    """Act on one message. Order matters: a cancellation may follow its request at once."""
    if isinstance(message, Generate):
        host.generate(message)
    elif isinstance(message, Cancel):
        host.cancel(message)
    elif isinstance(message, Embed):
        host.embed(message)
    elif isinstance(message, GetStats):
        channel.post(numbered(host.stats(), message.id))
    elif isinstance(message, Flush):
        host.flush()
        channel.post(numbered(host.stats(), message.id))
    elif isinstance(message, Resize):
        channel.post(host.resize(message))
    elif isinstance(message, Spill):
        channel.post(host.spill(message))
    else:
        raise Stopped


def numbered(stats: Stats, number: int) -> Stats:
    return msgspec.structs.replace(stats, id=number)
