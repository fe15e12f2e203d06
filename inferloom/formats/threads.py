"""Work on the pieces of a matrix by several threads, results in order: numpy lets go of the interpreter while it computes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Piece = TypeVar("Piece")
Result = TypeVar("Result")

_MOST = 8


def each(work: Callable[[Piece], Result], pieces: Iterable[Piece]) -> Iterator[Result]:
    """`map(work, pieces)` with as many threads as there are processors, at most twice as many results ahead as those."""
    count = min(_MOST, len(os.sched_getaffinity(0)))
    if count == 1:
        yield from map(work, pieces)
        return
    with ThreadPoolExecutor(count) as threads:
        ahead: deque[Future[Result]] = deque()
        try:
            for piece in pieces:
                ahead.append(threads.submit(work, piece))
                if len(ahead) > 2 * count:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()
