from __future__ import annotations

import socket

import msgspec
import pytest

from inferloom.worker.channel import POSTED, Channel
from inferloom.worker.frames import FrameSplitter
from inferloom.worker.messages.replies import FromWorker, Progress, Stats

decode = msgspec.msgpack.Decoder(FromWorker).decode


def received(sock: socket.socket, count: int) -> list[FromWorker]:
    splitter, messages = FrameSplitter(), []
    while len(messages) < count:
        messages += [decode(body) for body in splitter.split(sock.recv(1 << 16))]
    return messages


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Channel(ours), theirs


@pytest.mark.parametrize("threaded", [False, True])
def test_posted_and_sent_messages_arrive_in_order(ends, threaded):
    channel, gateway = ends
    if threaded:
        channel.start_posting()
    for number in range(3 * POSTED):
        (channel.send if number % 10 == 9 else channel.post)(Stats(number))
    channel.send(Progress("last"))
    *counted, last = received(gateway, 3 * POSTED + 1)
    assert [stats.id for stats in counted] == list(range(3 * POSTED))
    assert last == Progress("last")


def test_posting_to_a_gateway_that_is_gone_ends_the_worker(ends):
    channel, gateway = ends
    channel.start_posting()
    gateway.close()
    with pytest.raises(EOFError):
        for number in range(POSTED + 2):
            channel.post(Stats(number))
