"""One try to bring a model into memory: find its files, ask for room, start its worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from inferloom.catalog.arbiter import Arbiter
from inferloom.errors import InferloomError, InvalidFormat, LoadFailed, SourceError, Unsupported
from inferloom.runners.base import DeviceContext, ModelRunner, ProgressSink, WeightSource
from inferloom.sources.reference import PathRef, parse
from inferloom.types import LoadProgress, LoadReport

if TYPE_CHECKING:
    from inferloom.catalog.residence import Residence


async def bring_in(
    guest: Residence,
    make_runner: Callable[[], ModelRunner],
    source: WeightSource,
    *,
    arbiter: Arbiter,
    progress: ProgressSink,
    clock: Callable[[], float],
) -> tuple[ModelRunner, LoadReport | None]:
    """Returns a loaded runner; `guest.reservation` is its memory. When it raises, no process is left and nothing is reserved;
    all it raises is an `InferloomError`, except for a cancellation."""
    with _undone_where_it_fails(guest, arbiter):
        begun = clock()
        runner = make_runner()
        footprint = await runner.footprint(source, progress)
        opened = clock()
        if footprint is not None:
            progress(LoadProgress("room"))
            runner.grant((await arbiter.room(guest, footprint)).kv)
        waited = clock()
        devices = DeviceContext(devices=tuple(guest.config.driver.device))
        report = await runner.load_weights(devices, source, progress)
        if report is None:
            return runner, None
        if footprint is not None:
            _give_back_spare(guest, arbiter, kv_bytes=report.card.kv_pages * footprint.kv_page)
        runner.on_resized = lambda: arbiter.pools.note(guest)
        found = opened - begun
        packed = min(found, report.stages.get("pack", 0.0))
        # the wait for others to go is no time of this model's
        return runner, msgspec.structs.replace(
            report,
            seconds=found + report.seconds,
            stages={"open": found - packed, "room": waited - opened, **report.stages},
        )


@contextmanager
def _undone_where_it_fails(guest: Residence, arbiter: Arbiter) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        arbiter.release(guest)
        if isinstance(error, Unsupported):
            # whoever asks did nothing wrong: it is the checkpoint that this version cannot run
            raise InvalidFormat(error.message) from error
        if isinstance(error, InferloomError) or not isinstance(error, Exception):
            raise
        # a defect of ours or of a library: it must not leave the model loading for ever
        raise LoadFailed(f"loading {guest.id} failed: {type(error).__name__}: {error}") from error


def _give_back_spare(guest: Residence, arbiter: Arbiter, *, kv_bytes: int) -> None:
    """Fewer pages than were granted may have been enough."""
    if guest.reservation is None:
        return
    held = arbiter.ledger.of(guest.reservation)
    if 0 < kv_bytes < held.kv:
        arbiter.ledger.change(guest.reservation, msgspec.structs.replace(held, kv=kv_bytes))


def place_of(source: str | None) -> Path | None:
    """The path a source is, absolute; None for what is fetched, and for what is not there."""
    if not source:
        return None
    try:
        ref = parse(source).ref
    except SourceError:
        return None
    return ref.path if isinstance(ref, PathRef) else None
