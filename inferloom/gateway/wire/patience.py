"""`timeout_secs`, a field of every request that uses a model: how long whoever asks waits for the whole answer."""

from __future__ import annotations

import time
from typing import Annotated

from msgspec import Meta

TimeoutSecs = Annotated[
    float,
    Meta(
        gt=0,
        description="Longest that this request may take: in line, while its model is loaded, and to the end of its answer. "
        "The server's own limits hold beside it.",
    ),
]


def deadline(given: float | None) -> float | None:
    """time.monotonic() at which the answer must be complete; None where the request says nothing."""
    return None if given is None else time.monotonic() + given
