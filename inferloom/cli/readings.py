"""What `inferloom top` shows, read from a server: its models, its counters, and what happens between two readings."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import msgspec

from inferloom.cli.listing import ModelRow
from inferloom.cli.session import Session, row_of
from inferloom.cli.transport import NoServer
from inferloom.errors import InferloomError

_SAMPLE = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_RUNNING = "inferloom_engine_sequences_running"
_WAITING = "inferloom_engine_sequences_waiting"
_GENERATED = "inferloom_generated_tokens_total"
_AGAIN = 1.0  # seconds until events are asked for again after their stream ended
_REMEMBERED = 60.0  # seconds for which it is said why a model was evicted or expired


class Counters(msgspec.Struct, frozen=True):
    """Counters of one moment by model, as far as `top` shows them. `time` is of a monotonic clock."""

    time: float
    running: dict[str, int] = {}
    waiting: dict[str, int] = {}
    generated: dict[str, float] = {}


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """A model in the table. `tokens_per_second` is None until there are two readings to compare."""

    id: str
    state: str
    default: bool
    stage: str
    fraction: float | None
    memory: int
    reserved: int
    tokens_per_second: float | None
    running: int
    waiting: int  # for the model, and in its engine
    expires_at: float | None
    pinned: bool
    why: str
    shares: list[str] = []


def counters(text: str, now: float) -> Counters:
    """Prometheus' text as counters."""
    found: dict[str, dict[str, float]] = {_RUNNING: {}, _WAITING: {}, _GENERATED: {}}
    for sample in _SAMPLE.finditer(text):
        values = found.get(sample["name"])
        if values is None:
            continue
        model = dict(_LABEL.findall(sample["labels"] or "")).get("model")
        if model is not None:
            name = re.sub(r"\\(.)", r"\1", model)
            values[name] = values.get(name, 0.0) + float(sample["value"])
    whole = {name: {model: int(value) for model, value in values.items()} for name, values in found.items()}
    return Counters(now, whole[_RUNNING], whole[_WAITING], found[_GENERATED])


def lines(
    rows: list[ModelRow], now: Counters, before: Counters | None, told: dict[str, str] | None = None
) -> list[Line]:
    """The table's lines. `told` is what events said of models, for those that say nothing themselves."""
    return [
        Line(
            id=row.id,
            state=row.state,
            default=row.default,
            stage=row.stage,
            fraction=row.fraction,
            memory=row.memory or (row.bytes if row.state in ("ready", "draining") else 0),
            reserved=row.reserved,
            tokens_per_second=_rate(row.id, now, before),
            running=now.running.get(row.id, 0),
            waiting=row.waiting + now.waiting.get(row.id, 0),
            expires_at=row.expires_at,
            pinned=row.pinned,
            why=row.reason or (told or {}).get(row.id, ""),
            shares=row.shares,
        )
        for row in rows
    ]


def _rate(model: str, now: Counters, before: Counters | None) -> float | None:
    if before is None or now.time <= before.time:
        return None
    count = now.generated.get(model, 0.0) - before.generated.get(model, 0.0)
    return max(0.0, count) / (now.time - before.time)  # a server that was started again counts from 0


class Readings:
    """Reads a server again and again; events wake `wait` and tell why a model left."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._before: Counters | None = None
        self._told: dict[str, tuple[float, str]] = {}
        self._news = threading.Event()
        self._stopped = threading.Event()

    def take(self) -> list[Line]:
        """The lines as of now. Raises `NoServer`."""
        self._news.clear()
        rows = [row_of(card) for card in self._session.cards()]
        text = self._session.metrics()
        now = counters(text, time.monotonic())
        latest = now.time - _REMEMBERED
        told = {model: why for model, (at, why) in self._told.items() if at > latest}
        shown = lines(rows, now, self._before, told)
        self._before = now if text else None  # without metrics there are no rates
        return shown

    def wait(self, seconds: float) -> None:
        """Until something happened to a model, `seconds` at most; and not more often than ten times a second."""
        if self._news.wait(seconds):
            time.sleep(min(0.1, seconds))

    def follow(self) -> None:
        """Listen to the server's events in a thread, until `stop` and the end of their stream."""
        threading.Thread(target=self._listen, daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def _listen(self) -> None:
        while not self._stopped.is_set():
            try:
                for name, event in self._session.events():
                    self.note(name, event)
            except (InferloomError, ValueError):
                pass  # the reading that follows says that the server is gone
            self._stopped.wait(_AGAIN)

    def note(self, name: str, event: Any) -> None:
        """Take in one event."""
        model = event.get("id") if isinstance(event, dict) else None
        if isinstance(model, str):
            if name in ("evicted", "expired"):
                why = f"{name}: {event['reason']}" if event.get("reason") else name
                self._told[model] = (time.monotonic(), why)
            elif event.get("state") in ("loading", "ready"):
                self._told.pop(model, None)
        self._news.set()


def readings(session: Session, *, seconds: float) -> Iterator[list[Line] | None]:
    """A reading now and one whenever something happened or `seconds` are over. Raises `NoServer` at the first alone:
    while the server is away, None stands for a reading."""
    reader = Readings(session)
    yield reader.take()
    reader.follow()
    try:
        while True:
            reader.wait(seconds)
            try:
                found = reader.take()
            except NoServer:
                time.sleep(min(seconds, _AGAIN))
                yield None
            else:
                yield found
    finally:
        reader.stop()
