"""`keep_alive`, a field of every request that uses a model: how long the model may stay idle after it."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from inferloom.config.quantities import keep_alive_secs
from inferloom.errors import ConfigError, InvalidRequest

KeepAlive = Annotated[float | str, Meta(description='Seconds, "5m", 0 (unload when idle), -1 (for ever).')]


def keep_alive(given: float | str | None) -> float | None:
    """Seconds that the model may then stay idle, infinity for ever; None where the request says nothing.

    Raises `InvalidRequest` naming the field.
    """
    if given is None:
        return None
    try:
        return keep_alive_secs(given)
    except ConfigError as error:
        raise InvalidRequest(
            f"Invalid value for 'keep_alive': {error.message}.", param="keep_alive"
        ) from None
