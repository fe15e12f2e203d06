"""What every residence works with."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from inferloom.catalog.lifecycle import Transition
from inferloom.config.schema import ModelConfig
from inferloom.errors import InferloomError
from inferloom.runners.base import ModelRunner
from inferloom.types import LoadProgress

if TYPE_CHECKING:
    from inferloom.catalog.arbiter import Arbiter
    from inferloom.catalog.residence import Residence

MakeRunner = Callable[[ModelConfig, Callable[[InferloomError], None]], ModelRunner]


class Surroundings(msgspec.Struct, frozen=True):
    """What residences have in common."""

    arbiter: Arbiter
    make_runner: MakeRunner
    changed: Callable[[Residence, Transition], None]
    progressed: Callable[[Residence, LoadProgress], None]
    rested: Callable[[Residence], None]  # its load or unload has ended
    clock: Callable[[], float]
