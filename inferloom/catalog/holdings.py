"""Who holds what, for people: why there is no room, and what they can do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from inferloom.catalog.ledger import Ledger

if TYPE_CHECKING:
    from inferloom.catalog.residence import Residence

_HEAD = ("model", "state", "weights", "KV", "workspace", "pinned", "leases")


def table(residences: Sequence[Residence], ledger: Ledger) -> str:
    """What ends a sentence that says how much is free: lines in MiB, and what to do."""
    rows = [_HEAD, *(_row(one, ledger) for one in residences)]
    if len(rows) == 1:
        return ".\nRaise [runtime] memory_budget; a smaller max_model_len or max_batch_tokens makes a model need less."
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    held = "\n".join(line.rstrip() for line in lines)
    return f"; held by (MiB):\n{held}\nUnload or unpin one of these, or raise [runtime] memory_budget."


def _row(one: Residence, ledger: Ledger) -> tuple[str, ...]:
    assert one.reservation is not None
    kinds = ledger.of(one.reservation)
    sizes = (f"{bytes_ / (1 << 20):.0f}" for bytes_ in (kinds.weights, kinds.kv, kinds.workspace))
    return (one.id, str(one.state), *sizes, "yes" if one.pinned else "no", str(one.leases))
