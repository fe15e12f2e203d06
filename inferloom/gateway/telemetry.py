"""OpenTelemetry as the rest of the gateway knows it. The packages are optional, and only imported where it is enabled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from inferloom.errors import ConfigError

if TYPE_CHECKING:
    from inferloom.catalog.lifecycle import Transition
    from inferloom.config.schema import TelemetryConfig
    from inferloom.gateway.call import Call
    from inferloom.gateway.metrics import Metrics

INSTALL = "pip install 'inferloom[telemetry]'"


class Telemetry(Protocol):
    """Where traces and metrics go. Nothing here waits for a collector, or raises because of one."""

    def start(self, metrics: Metrics) -> None:
        """Export what `metrics` counts from now on, every few seconds. To be called in the event loop."""

    def answered(self, call: Call) -> None:
        """A request is over."""

    def changed(self, change: Transition) -> None:
        """A model's state has changed."""

    async def close(self) -> None:
        """Send what is left, as far as that goes within two seconds."""


def open_telemetry(config: TelemetryConfig) -> Telemetry | None:
    """What `[telemetry]` asks for; None where it is not enabled. Raises `ConfigError` where packages are missing."""
    if not config.enabled:
        return None
    try:
        from inferloom.gateway.otlp import Otlp
    except ImportError as error:
        raise ConfigError(
            f"telemetry.enabled = true needs OpenTelemetry's packages, and there is no module {error.name!r} here: "
            f"install them with {INSTALL}, or set telemetry.enabled = false"
        ) from None
    return Otlp(config)
