"""What a speculator knows of one sequence's future."""

from __future__ import annotations

from dataclasses import dataclass, field

from inferloom.engine.drafts import NgramIndex
from inferloom.engine.speculation import Acceptance


@dataclass(slots=True)
class Foresight:
    """What is known. `forced`: a grammar forces the draft under way; `next`: the token that
    the index foresees, whether or not it was worth a row (−1: none)."""

    acceptance: Acceptance
    index: NgramIndex = field(default_factory=NgramIndex)
    forced: bool = False
    next: int = -1
