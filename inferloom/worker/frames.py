"""Frames on a byte stream: a 4-byte little-endian length, then one message in msgpack."""

from __future__ import annotations

HEADER = 4  # bytes


def frame(body: bytes) -> bytes:
    """`body` with its length before it."""
    return len(body).to_bytes(HEADER, "little") + body


class FrameSplitter:
    """Cuts what arrives into frames and keeps an incomplete rest for the next time."""

    __slots__ = ("_rest", "_wanted")

    def __init__(self) -> None:
        self._rest = bytearray()
        self._wanted = HEADER  # bytes of the rest below which no frame can be complete

    def split(self, data: bytes) -> list[memoryview]:
        """The bodies of all frames complete with `data`. They stay valid as long as they are held."""
        if self._rest:
            self._rest += data
            if len(self._rest) < self._wanted:
                return []
            data = bytes(self._rest)
            self._rest = bytearray()
        bodies: list[memoryview] = []
        view = memoryview(data)
        at, end = 0, len(data)
        self._wanted = HEADER
        while end - at >= HEADER:
            start = at + HEADER
            stop = start + int.from_bytes(view[at:start], "little")
            if stop > end:
                self._wanted = stop - at
                break
            bodies.append(view[start:stop])
            at = stop
        if at < end:
            self._rest += view[at:]
        return bodies
