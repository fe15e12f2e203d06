"""What can be known and done of a model without loading it: by a runner that is asked for its files alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferloom.errors import InferloomError
from inferloom.types import Footprint

if TYPE_CHECKING:
    from inferloom.catalog.residence import Residence


async def expected(at: Residence) -> Footprint | None:
    """What it would take; None where its files are not ready on this machine. Changes nothing."""
    return await at.new_runner(_nobody).footprint(at.source(), fetch=False)


async def prepare(at: Residence) -> None:
    """Have its files fetched, converted and packed."""
    await at.new_runner(_nobody).footprint(at.source())


async def files_changed(at: Residence) -> bool:
    """Whether a load would find other files than the loaded model was made of."""
    if at.runner is None or at.runner.fingerprint is None:
        return False
    loaded = at.runner.fingerprint  # its worker may die while the files are looked at
    fresh = at.new_runner(_nobody)
    await fresh.footprint(at.source())
    return fresh.fingerprint != loaded


def _nobody(error: InferloomError) -> None:
    """Of a runner that is never loaded."""
