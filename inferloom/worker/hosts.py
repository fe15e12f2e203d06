"""What a worker hosts, as its message loop sees it: something that takes requests and makes answers step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from inferloom.types import ModelCard
from inferloom.worker.messages.replies import FromWorker, Resized, Spilled, Stats
from inferloom.worker.messages.requests import Cancel, Embed, Generate, Resize, Spill

Report = Callable[[str, float | None], None]  # a stage of the load and how far it is


class Host(Protocol):
    """Synchronous, used by one thread."""

    card: ModelCard
    stages: dict[str, float]  # seconds of each stage of the load

    @property
    def has_work(self) -> bool: ...

    @property
    def pause(self) -> float:
        """Seconds that the loop may sleep after a step that brought nothing."""
        ...

    def generate(self, request: Generate) -> None: ...

    def cancel(self, request: Cancel) -> None: ...

    def embed(self, request: Embed) -> None: ...

    def step(self) -> list[FromWorker]:
        """Do one step of the work there is; what it brought."""
        ...

    def flush(self) -> None:
        """Drop what is cached."""
        ...

    def resize(self, request: Resize) -> Resized:
        """Have so many KV pages, or as near as can be."""
        ...

    def spill(self, request: Spill) -> Spilled:
        """Keep what is cached in a file."""
        ...

    def stats(self) -> Stats: ...

    def end(self) -> None:
        """Nothing follows: what the kernel would take long to take away is let go of."""
        ...
