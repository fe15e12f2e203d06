"""What went wrong with a model, and when it is tried again."""

from __future__ import annotations

from collections.abc import Callable

from inferloom.catalog.arbiter import NoRoom
from inferloom.errors import InferloomError, InvalidFormat, ModelUnavailable, OutOfMemory, SourceError
from inferloom.worker.pacing import retry_delay

# Trying again at once cannot help where the cause lies in the files or in the machine's size.
LASTING = (SourceError, InvalidFormat, OutOfMemory)


class Tries:
    """Failures in a row, crashes and failed loads alike."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.error: InferloomError | None = None
        self.retry_at: float | None = None
        self.count = 0

    def fail(self, error: InferloomError) -> None:
        self.error = error
        if isinstance(error, NoRoom):
            self.retry_at = None  # room may come at any time, and finding none costs nothing
            return
        self.count += 1
        # an error that will last is not worth the retry at once
        pause = max(retry_delay(self.count), 1.0 if isinstance(error, LASTING) else 0.0)
        self.retry_at = self._clock() + pause

    def worth_another(self, error: InferloomError) -> bool:
        """At once, that is."""
        return self.count <= 1 and not isinstance(error, LASTING)

    def served(self) -> None:
        """What crashed before is forgotten."""
        self.count = 0

    def forget(self) -> None:
        self.count, self.retry_at, self.error = 0, None, None

    def refuse_early(self, model: str) -> None:
        """Raises `ModelUnavailable` before the time of the next try."""
        wait = (self.retry_at or 0.0) - self._clock()
        if wait > 0 and self.error is not None:
            raise ModelUnavailable(
                f"the model {model} cannot be loaded: {self.error.message} (next try in {wait:.1f} s)",
                retry_after=wait,
            )
